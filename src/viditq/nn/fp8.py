"""``Fp8Linear``: a linear layer with 8-bit floating-point weights and activations.

One scale per output channel and per token, as :func:`viditq.ops.fp8_linear` takes them. It is what
integers are compared with; fused blocks leave it as it is.
"""

from torch import Tensor

from viditq.nn.linear import QuantLinear
from viditq.ops import fp8_linear, quantize_rows_fp8

__all__ = ["Fp8Linear"]


class Fp8Linear(QuantLinear):
    """``y = ((x - c) / s) H · Ŵ'ᵀ + b``; ``weight`` is (N, K) float8_e4m3fn."""

    def forward(self, input: Tensor) -> Tensor:
        x = self._balanced(input)
        codes, x_scale = quantize_rows_fp8(x)
        y = fp8_linear(codes, x_scale, self.weight, self.scale, self.bias, input.dtype)
        return y.reshape(*input.shape[:-1], self.out_features)
