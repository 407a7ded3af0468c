"""Runtime modules: what a quantized model is made of."""

from viditq.nn.linear import FP32_TENSORS, QuantLinear
from viditq.nn.replace import planned_layers, replace_

__all__ = ["FP32_TENSORS", "QuantLinear", "planned_layers", "replace_"]
