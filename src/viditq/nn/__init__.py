"""Runtime modules: what a quantized model is made of."""

from viditq.nn.fp8 import Fp8Linear
from viditq.nn.linear import CENTER_DTYPE, EXACT_TENSORS, FP32_TENSORS, QuantLinear
from viditq.nn.replace import empty_like, planned_layers, replace_
from viditq.nn.restored import RestoredLinear, refuse_restored, refuse_saving_
from viditq.nn.simulated import SimulatedLinear
from viditq.nn.trainable import TrainableLinear, check_trainable

__all__ = [
    "CENTER_DTYPE",
    "EXACT_TENSORS",
    "FP32_TENSORS",
    "Fp8Linear",
    "QuantLinear",
    "RestoredLinear",
    "SimulatedLinear",
    "TrainableLinear",
    "check_trainable",
    "empty_like",
    "planned_layers",
    "refuse_restored",
    "refuse_saving_",
    "replace_",
]
