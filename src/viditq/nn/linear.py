"""``QuantLinear``: a linear layer whose weight is integer codes.

The layer's own input stays the original one: smoothing and rotation happen inside, so a LoRA beside
the layer, a hook or another reader of the tensor sees what it expects. It is an ``nn.Linear``
subclass because PEFT and offloading look for one, and holds plain tensors, no tensor subclass.
Layers that no integer kernel computes are subclasses: :mod:`viditq.nn.fp8`,
:mod:`viditq.nn.simulated`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from viditq.balancing import rotation_block
from viditq.formats import Format
from viditq.ops import balance_rows, int4_linear, int8_linear, quantize_rows
from viditq.plan import LayerPlan
from viditq.quantizers import Grid, unpack

__all__ = ["QuantLinear"]

FP32_TENSORS = ("scale", "offset", "smooth", "input_scale", "input_offset")
EXACT_TENSORS = ("weight", "down", "up", "center", *FP32_TENSORS)
"""What a cast of the model leaves alone: it would change the numbers."""

CENTER_DTYPE = torch.bfloat16
"""Of centers: half the bytes, and any number near the mean will do."""


class QuantLinear(nn.Linear):
    """``y = ((x - c) / s) H · Ŵ'ᵀ + b`` with 8-, 6- or 4-bit activations and weights.

    Attributes:
        weight: (N, ``weight_format.row_bytes(K)``) int8, or uint8 when packed.
        scale: (N,) fp32, per output channel.
        bias: (N,) float, or ``None``; with a center, what the layer makes of it included.
        center: (K,) bf16 that is taken off the input, or ``None``.
        smooth: (K,) fp32 that the input is divided by, with the rotation's signs, or ``None``.
        input_scale: () fp32 for static per-tensor activations, or ``None``.
        hadamard: block of the rotation, 0 for none.
        balancing: what decides how the input is quantized, up to the values of vectors: layers that
            read one input and agree here share codes.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        plan: LayerPlan,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """An empty layer; the plan says which tensors it has, ``dtype`` is that of the bias."""
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.plan = in_features, out_features, plan
        self.hadamard = rotation_block(in_features, plan.hadamard)
        self.balancing = (
            plan.activation,
            plan.granularity,
            plan.smooth,
            plan.center,
            self.hadamard,
        )
        self._bits = plan.activation_format.bits
        fmt = plan.weight_format
        balanced = plan.smooth is not None or self.hadamard > 0
        rows = (out_features, fmt.row_bytes(in_features))
        self.weight = self._empty(True, rows, _stored(fmt), device)
        self.scale = self._empty(True, self._scale_shape, torch.float32, device)
        bias = bias or plan.bias_correction or plan.center
        self.bias = self._empty(bias, (out_features,), dtype, device)
        self.center = self._empty(plan.center, (in_features,), CENTER_DTYPE, device)
        self.smooth = self._empty(balanced, (in_features,), torch.float32, device)
        self.input_scale = self._empty(plan.granularity == "tensor", (), torch.float32, device)

    @staticmethod
    def _empty(
        wanted: bool, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None
    ) -> Any:
        if not wanted:
            return None
        return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)

    @property
    def _scale_shape(self) -> tuple[int, ...]:
        return (self.out_features,)

    # A module's own way to its parameters takes the processor ten times as long as these two.
    @property
    def input_quantization(
        self,
    ) -> tuple[Tensor | None, int, int, Tensor | None, Tensor | None]:
        """What is done to the input: ``smooth``, ``hadamard``, bits, ``input_scale``,
        ``center``."""
        tensors = self._parameters
        return (
            tensors.get("smooth"),
            self.hadamard,
            self._bits,
            tensors.get("input_scale"),
            tensors.get("center"),
        )

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """What codes of the input are multiplied by: ``weight``, ``scale``, ``bias``."""
        tensors: Any = self._parameters
        return tensors["weight"], tensors["scale"], tensors.get("bias")

    def forward(self, input: Tensor) -> Tensor:
        codes, x_scale = quantize_rows(
            input.reshape(-1, self.in_features), *self.input_quantization
        )
        weight, scale, bias = self.operands
        if self.plan.weight == "int4":
            y = int4_linear(codes, x_scale, weight, scale, bias, input.dtype)
        else:
            weight = unpack(weight, self.plan.weight_format, self.in_features)
            y = int8_linear(codes, x_scale, weight, scale, bias, input.dtype)
        return y.reshape(*input.shape[:-1], self.out_features)

    def _balanced(self, input: Tensor) -> Tensor:
        """(…, K) float -> (M, K) fp32, for layers that quantize it by themselves."""
        rows = input.reshape(-1, self.in_features)
        return balance_rows(rows, self.smooth, self.hadamard, self.center)

    def dequantized(self) -> Tensor:
        """(N, K) fp32: the balanced weight that the codes stand for."""
        codes = unpack(self.weight, self.plan.weight_format, self.in_features)
        return Grid(self.scale).values(codes)

    @property
    def size_bytes(self) -> int:
        """Bytes of the weight and of what quantization added; not the bias."""
        stored = (t for name, t in self._parameters.items() if name != "bias" and t is not None)
        return sum(t.numel() * t.element_size() for t in stored)

    @property
    def weight_bits(self) -> float:
        """True bits per weight, scales included."""
        return 8 * self.size_bytes / (self.in_features * self.out_features)

    def extra_repr(self) -> str:
        return (
            f"{self.in_features} -> {self.out_features}, {self.plan.weight} x "
            f"{self.plan.activation} per {self.plan.granularity}, "
            f"center={self.center is not None}, smooth={self.smooth is not None}, "
            f"hadamard={self.hadamard}, "
            f"bias={self.bias is not None}"
        )

    def _apply(self, fn: Any, recurse: bool = True) -> "QuantLinear":
        """Move devices, but keep what is stored as it is stored."""
        kept = {n: t.data for n in EXACT_TENSORS if (t := self._parameters.get(n)) is not None}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            tensor = getattr(self, name)
            if tensor.dtype != before.dtype:
                tensor.data = before.to(tensor.device)
        return self


def _stored(fmt: Format) -> torch.dtype:
    """What codes of ``fmt`` are stored as."""
    if not fmt.is_integer:
        return torch.float8_e4m3fn
    return torch.int8 if fmt.group == 1 else torch.uint8
