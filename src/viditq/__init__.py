"""viditq: diffusion transformers in 8 and 4 bits.

Public names are imported when they are first used: ``import viditq`` alone loads neither torch nor
diffusers, so the command line answers at once. A new name goes into three places below, in the
same order: the imports that type checkers read, ``__all__``, and ``_HOMES``; a test compares them.
Type checkers do not see ``__getattr__``, so that a misspelt name is an error to them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from viditq.bench import tune_
    from viditq.blocks import fuse_, unfuse_
    from viditq.calibration import CalibrationSet, observe, observe_gradients
    from viditq.checkpoint import inspect
    from viditq.convert import quantize_
    from viditq.errors import (
        CalibrationError,
        CheckpointError,
        InputError,
        PipelineError,
        PlanError,
        ViditqError,
    )
    from viditq.evaluation import compare
    from viditq.formats import Format
    from viditq.graphs import capture_, release_
    from viditq.models import Adapter, guess_adapter, register_adapter
    from viditq.nn import QuantLinear
    from viditq.pipelines import generate, load, quantize, record, register
    from viditq.plan import LayerPlan, Plan
    from viditq.planning import make_plan
    from viditq.recipe import Recipe, list_methods, list_presets, load_recipe
    from viditq.stats import CalibrationStats
    from viditq.streaming import quantize_transformer_

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "CalibrationError",
    "CalibrationSet",
    "CalibrationStats",
    "CheckpointError",
    "Format",
    "InputError",
    "LayerPlan",
    "PipelineError",
    "Plan",
    "PlanError",
    "QuantLinear",
    "Recipe",
    "ViditqError",
    "__version__",
    "capture_",
    "compare",
    "fuse_",
    "generate",
    "guess_adapter",
    "inspect",
    "list_methods",
    "list_presets",
    "load",
    "load_recipe",
    "make_plan",
    "observe",
    "observe_gradients",
    "quantize",
    "quantize_",
    "quantize_transformer_",
    "record",
    "register",
    "register_adapter",
    "release_",
    "tune_",
    "unfuse_",
]

# The module that each public name lives in.
_HOMES = {
    "Adapter": "models",
    "CalibrationError": "errors",
    "CalibrationSet": "calibration",
    "CalibrationStats": "stats",
    "CheckpointError": "errors",
    "Format": "formats",
    "InputError": "errors",
    "LayerPlan": "plan",
    "PipelineError": "errors",
    "Plan": "plan",
    "PlanError": "errors",
    "QuantLinear": "nn",
    "Recipe": "recipe",
    "ViditqError": "errors",
    "capture_": "graphs",
    "compare": "evaluation",
    "fuse_": "blocks",
    "generate": "pipelines",
    "guess_adapter": "models",
    "inspect": "checkpoint",
    "list_methods": "recipe",
    "list_presets": "recipe",
    "load": "pipelines",
    "load_recipe": "recipe",
    "make_plan": "planning",
    "observe": "calibration",
    "observe_gradients": "calibration",
    "quantize": "pipelines",
    "quantize_": "convert",
    "quantize_transformer_": "streaming",
    "record": "pipelines",
    "register": "pipelines",
    "register_adapter": "models",
    "release_": "graphs",
    "tune_": "bench",
    "unfuse_": "blocks",
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
