"""Recorded transformer inputs and the statistics taken from them."""

from viditq.calibration.gradients import observe_gradients
from viditq.calibration.observe import model_fingerprint, observe
from viditq.calibration.recorded import CalibrationInfo, CalibrationSet, RecordedCall, move

__all__ = [
    "CalibrationInfo",
    "CalibrationSet",
    "RecordedCall",
    "model_fingerprint",
    "move",
    "observe",
    "observe_gradients",
]
