"""Recorded transformer inputs and the statistics taken from them."""

from viditq.calibration.gradients import frozen, observe_gradients, output_bytes, used_output
from viditq.calibration.observe import check_recorded_from, input_bytes, model_fingerprint, observe
from viditq.calibration.padding import pad_captions, trim_captions, valid_tokens
from viditq.calibration.recorded import CalibrationInfo, CalibrationSet, RecordedCall, move

__all__ = [
    "CalibrationInfo",
    "CalibrationSet",
    "RecordedCall",
    "check_recorded_from",
    "frozen",
    "input_bytes",
    "model_fingerprint",
    "move",
    "observe",
    "observe_gradients",
    "output_bytes",
    "pad_captions",
    "trim_captions",
    "used_output",
    "valid_tokens",
]
