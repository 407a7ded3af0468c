"""What layers of a block read: a tensor, and what is done to it before it is quantized.

Each kind can be had in two forms. ``codes`` is for a fused layer: everything up to the integers in
one op. ``values`` is for a layer that takes floats, because it stayed float or something sits on
it: the tensor that it would get from the block's original forward, bit by bit.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from viditq.nn import QuantLinear
from viditq.ops import gelu_quantize, norm_quantize, quantize_rows

__all__ = ["Gelu", "Input", "Modulated", "ModulatedInFp32", "Plain", "over_tokens"]


class Input(Protocol):
    """An input of one or more layers."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the values, and of what layers make of them."""
        ...

    @property
    def tokens(self) -> torch.Size:
        """(B, S), or of a video (B, T, S)."""
        ...

    def values(self) -> Tensor:
        """(*tokens, K) float."""
        ...

    def codes(self, layer: QuantLinear) -> tuple[Tensor, Tensor]:
        """Codes (M, K) int8 for all M tokens, balanced as ``layer`` wants them, and scale fp32:
        (M,), or the layer's static one ()."""
        ...


@dataclass
class Plain:
    """``x`` (*tokens, K) as it is."""

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
        return quantize_rows(self.x.flatten(0, -2), *layer.input_quantization)


@dataclass
class Modulated(Plain):
    """``norm(x) · (1 + gain) + shift``.

    ``gain`` and ``shift`` are (B, K), have as many dimensions as ``x`` and are 1 in the last ones
    of tokens if they are less, or are none.
    """

    norm: nn.LayerNorm | RMSNorm
    gain: Tensor | None = None
    shift: Tensor | None = None

    def values(self) -> Tensor:
        return self._of(self.x)

    def _of(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.gain is not None:
            y = y * (1 + over_tokens(self.gain))
        return y if self.shift is None else y + over_tokens(self.shift)

    def codes(self, layer: QuantLinear) -> tuple[Tensor, Tensor]:
        smooth, hadamard, bits, scale, center = layer.input_quantization
        affine = self.norm._parameters
        return norm_quantize(
            self.x.flatten(0, -2),
            "layer" if isinstance(self.norm, nn.LayerNorm) else "rms",
            self.norm.eps,
            weight=affine.get("weight"),
            bias=affine.get("bias"),
            gain=_rows(self.gain),
            shift=_rows(self.shift),
            smooth=smooth,
            hadamard=hadamard,
            bits=bits,
            scale=scale,
            center=center,
        )


@dataclass
class ModulatedInFp32(Modulated):
    """The same, computed in fp32 whatever the dtype of ``x`` is, and rounded to that once."""

    def values(self) -> Tensor:
        return self._of(self.x.float()).type_as(self.x)


@dataclass
class Gelu(Plain):
    """``gelu(x)``, with the columns of ``left`` (*tokens, L) before it as they are.

    ``approximate`` is torch's, ``none`` or ``tanh``.
    """

    approximate: str
    left: Tensor | None = None

    def values(self) -> Tensor:
        y = F.gelu(self.x, approximate=self.approximate)
        return y if self.left is None else torch.cat([self.left, y], -1)

    def codes(self, layer: QuantLinear) -> tuple[Tensor, Tensor]:
        smooth, hadamard, bits, scale, center = layer.input_quantization
        return gelu_quantize(
            self.x.flatten(0, -2),
            "gelu_tanh" if self.approximate == "tanh" else "gelu",
            smooth=smooth,
            hadamard=hadamard,
            bits=bits,
            left=None if self.left is None else self.left.flatten(0, -2),
            scale=scale,
            center=center,
        )


def _rows(vectors: Tensor | None) -> Tensor | None:
    """(B, K) or (…, K) -> (B, K), as many as there are."""
    return vectors if vectors is None or vectors.ndim == 2 else vectors.flatten(0, -2)


def over_tokens(vectors: Tensor) -> Tensor:
    """(B, K) -> (B, 1, K), which goes with (B, S, K); one of more dimensions stays as it is."""
    return vectors[:, None] if vectors.ndim == 2 else vectors
