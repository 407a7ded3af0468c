"""``QuantLinear``: a linear layer whose weight is integer codes.

The layer's own input stays the original one: smoothing and rotation happen inside, so a LoRA beside
the layer, a hook or another reader of the tensor sees what it expects. It is an ``nn.Linear``
subclass because PEFT and offloading look for one, and holds plain tensors, no tensor subclass.
"""

from typing import Any

import torch
from torch import Tensor, nn

from viditq.balancing import rotation_block
from viditq.ops import int4_linear, int8_linear, quantize_rows
from viditq.plan import LayerPlan
from viditq.quantizers import unpack

__all__ = ["QuantLinear"]

FP32_TENSORS = ("scale", "smooth", "input_scale")


class QuantLinear(nn.Linear):
    """``y = (x / s) H · Ŵ'ᵀ + b`` with 8- or 6-bit activations and 8-, 6- or 4-bit weights.

    Attributes:
        weight: (N, ``weight_format.row_bytes(K)``) int8, or uint8 when packed.
        scale: (N,) fp32, per output channel.
        bias: (N,) float, or ``None``.
        smooth: (K,) fp32 that the input is divided by, with the rotation's signs, or ``None``.
        input_scale: () fp32 for static per-tensor activations, or ``None``.
        hadamard: block of the rotation, 0 for none.
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

        def tensor(wanted: bool, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
            if not wanted:
                return None
            return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)

        fmt = plan.weight_format
        codes = torch.int8 if fmt.group == 1 else torch.uint8
        balanced = plan.smooth is not None or self.hadamard > 0
        self.weight = tensor(True, (out_features, fmt.row_bytes(in_features)), codes)
        self.scale = tensor(True, (out_features,), torch.float32)
        self.bias = tensor(bias or plan.bias_correction, (out_features,), dtype)
        self.smooth = tensor(balanced, (in_features,), torch.float32)
        self.input_scale = tensor(plan.granularity == "tensor", (), torch.float32)

    @classmethod
    def like(cls, linear: nn.Linear, plan: LayerPlan) -> "QuantLinear":
        """An empty layer with the shape, device and dtype of ``linear``."""
        return cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            plan,
            linear.weight.device,
            linear.weight.dtype,
        )

    def forward(self, input: Tensor) -> Tensor:
        x = input.reshape(-1, self.in_features)
        bits = self.plan.activation_format.bits
        codes, x_scale = quantize_rows(x, self.smooth, self.hadamard, bits, self.input_scale)
        if self.plan.weight == "int4":
            y = int4_linear(codes, x_scale, self.weight, self.scale, self.bias, input.dtype)
        else:
            weight = unpack(self.weight, self.plan.weight_format, self.in_features)
            y = int8_linear(codes, x_scale, weight, self.scale, self.bias, input.dtype)
        return y.reshape(*input.shape[:-1], self.out_features)

    @property
    def size_bytes(self) -> int:
        """Bytes of the weight and of what quantization added (scales, smoothing); not the bias."""
        parts = (self.weight, self.scale, self.smooth, self.input_scale)
        return sum(t.numel() * t.element_size() for t in parts if t is not None)

    @property
    def weight_bits(self) -> float:
        """True bits per weight, scales included."""
        return 8 * self.size_bytes / (self.in_features * self.out_features)

    def extra_repr(self) -> str:
        return (
            f"{self.in_features} -> {self.out_features}, {self.plan.weight} x "
            f"{self.plan.activation} per {self.plan.granularity}, "
            f"smooth={self.smooth is not None}, hadamard={self.hadamard}, "
            f"bias={self.bias is not None}"
        )

    def _apply(self, fn: Any, recurse: bool = True) -> "QuantLinear":
        """Move devices, but keep scales in fp32: ``.to(bfloat16)`` must not change the numbers."""
        kept = {n: t.data for n in FP32_TENSORS if (t := getattr(self, n)) is not None}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            tensor = getattr(self, name)
            if tensor.dtype != torch.float32:
                tensor.data = before.to(tensor.device)
        return self
