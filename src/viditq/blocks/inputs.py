"""What layers of a block read: a tensor, and what is done to it before it is quantized.

Each kind can be had in two forms. ``codes`` is for a fused layer: everything up to the integers in
one op. ``values`` is for a layer that takes floats, because it stayed float or something sits on
it: the tensor that it would get from the block's original forward, bit by bit.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viditq.nn import QuantLinear
from viditq.ops import gelu_quantize, norm_quantize, quantize_rows

__all__ = ["Gelu", "Input", "Modulated", "Plain"]


class Input(Protocol):
    """An input of one or more layers."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the values, and of what layers make of them."""
        ...

    @property
    def tokens(self) -> torch.Size:
        """(B, S)."""
        ...

    def values(self) -> Tensor:
        """(B, S, K) float."""
        ...

    def codes(self, layer: QuantLinear) -> tuple[Tensor, Tensor]:
        """Codes (B·S, K) int8, balanced as ``layer`` wants them, and scale fp32: (B·S,), or the
        layer's static one ()."""
        ...


@dataclass
class Plain:
    """``x`` (B, S, K) as it is."""

    x: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    @property
    def tokens(self) -> torch.Size:
        return self.x.shape[:-1]

    def values(self) -> Tensor:
        return self.x

    def codes(self, layer: QuantLinear) -> tuple[Tensor, Tensor]:
        bits = layer.plan.activation_format.bits
        x = self.x.flatten(0, 1)
        return quantize_rows(x, layer.smooth, layer.hadamard, bits, layer.input_scale)


@dataclass
class Modulated(Plain):
    """``norm(x) · (1 + gain) + shift``, with ``gain`` and ``shift`` (B, K)."""

    norm: nn.LayerNorm
    gain: Tensor
    shift: Tensor

    def values(self) -> Tensor:
        return self.norm(self.x) * (1 + self.gain[:, None]) + self.shift[:, None]

    def codes(self, layer: QuantLinear) -> tuple[Tensor, Tensor]:
        return norm_quantize(
            self.x.flatten(0, 1),
            "layer",
            self.norm.eps,
            weight=self.norm.weight,
            bias=self.norm.bias,
            gain=self.gain,
            shift=self.shift,
            smooth=layer.smooth,
            hadamard=layer.hadamard,
            bits=layer.plan.activation_format.bits,
            scale=layer.input_scale,
        )


@dataclass
class Gelu(Plain):
    """``gelu(x)``; ``approximate`` is torch's, ``none`` or ``tanh``."""

    approximate: str

    def values(self) -> Tensor:
        return F.gelu(self.x, approximate=self.approximate)

    def codes(self, layer: QuantLinear) -> tuple[Tensor, Tensor]:
        return gelu_quantize(
            self.x.flatten(0, 1),
            "gelu_tanh" if self.approximate == "tanh" else "gelu",
            smooth=layer.smooth,
            hadamard=layer.hadamard,
            bits=layer.plan.activation_format.bits,
            scale=layer.input_scale,
        )
