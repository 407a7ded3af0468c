"""viditq: diffusion transformers in 8 and 4 bits.

Public names are imported when they are first used: ``import viditq`` alone loads neither torch nor
diffusers, so the command line answers at once. A new name goes into three places below, in the
same order: the imports that type checkers read, ``__all__``, and ``_HOMES``; a test compares them.
Type checkers do not see ``__getattr__``, so that a misspelt name is an error to them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from viditq.errors import (
        CalibrationError,
        CheckpointError,
        InputError,
        PipelineError,
        PlanError,
        ViditqError,
    )

__version__ = "0.1.0"

__all__ = [
    "CalibrationError",
    "CheckpointError",
    "InputError",
    "PipelineError",
    "PlanError",
    "ViditqError",
    "__version__",
]

# The module that each public name lives in.
_HOMES = {
    "CalibrationError": "errors",
    "CheckpointError": "errors",
    "InputError": "errors",
    "PipelineError": "errors",
    "PlanError": "errors",
    "ViditqError": "errors",
}


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a public name on first use (PEP 562) and keep it."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
