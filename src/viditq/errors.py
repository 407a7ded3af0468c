"""Errors that a user can cause and can mend.

    ViditqError
    ├── InputError         an argument, a prompt file, an option
    ├── PipelineError      a pipeline that is missing, broken or of a kind viditq does not know
    ├── PlanError          a recipe or plan with an unknown or impossible field
    ├── CalibrationError   recorded inputs or statistics that are missing or do not fit
    └── CheckpointError    a quantized checkpoint that is damaged or does not fit

Each message is one sentence: what was given, what is accepted, what to do. The command line prints
it without a traceback and exits with code 2. What cannot happen is an ``assert``, not one of these.
"""

__all__ = [
    "CalibrationError",
    "CheckpointError",
    "InputError",
    "PipelineError",
    "PlanError",
    "ViditqError",
]


class ViditqError(Exception):
    """Base of every error that the user can mend."""


class InputError(ViditqError, ValueError):
    """An argument, option or input file that cannot be used."""


class PipelineError(ViditqError, ValueError):
    """A pipeline that is missing, broken, or of an unsupported kind."""


class PlanError(ViditqError, ValueError):
    """A recipe or plan with an unknown or impossible field."""


class CalibrationError(ViditqError, ValueError):
    """Recorded inputs or statistics that are missing or do not fit the model."""


class CheckpointError(ViditqError, ValueError):
    """A quantized checkpoint that is damaged, incomplete, or does not fit the model."""
