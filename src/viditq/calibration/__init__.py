"""Recorded transformer inputs and the statistics taken from them."""

from viditq.calibration.gradients import observe_gradients, output_bytes
from viditq.calibration.observe import input_bytes, model_fingerprint, observe
from viditq.calibration.padding import valid_tokens
from viditq.calibration.recorded import CalibrationInfo, CalibrationSet, RecordedCall, move

__all__ = [
    "CalibrationInfo",
    "CalibrationSet",
    "RecordedCall",
    "input_bytes",
    "model_fingerprint",
    "move",
    "observe",
    "observe_gradients",
    "output_bytes",
    "valid_tokens",
]
