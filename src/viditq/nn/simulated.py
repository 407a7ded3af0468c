"""``SimulatedLinear``: what no integer kernel computes, with floats that lie on the codes' grid.

Scales per group of channels, zero points, and a low-rank branch are what other methods use. They
are here to be compared with: stored as what they are, in the bits that they claim, and computed
like a float layer, not faster than one.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from viditq.nn.linear import QuantLinear
from viditq.plan import LayerPlan
from viditq.quantizers import Grid, fake_quantize, unpack

__all__ = ["SimulatedLinear"]


class SimulatedLinear(QuantLinear):
    """``y = Q(x') · Ŵ'ᵀ + (x' · downᵀ) · upᵀ + b`` with ``x' = ((x - c) / s) H``.

    Attributes:
        scale: (N,) or (N, ⌈K/group⌉) fp32.
        offset: of the same shape, with zero points; or ``None``.
        input_offset: () fp32, of static activations with a zero point; or ``None``.
        down: (rank, K) bf16, or ``None``.
        up: (N, rank) bf16, or ``None``.
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
        super().__init__(in_features, out_features, bias, plan, device, dtype)
        rank = min(plan.rank, in_features, out_features)
        static = plan.zero_point and plan.granularity == "tensor"
        shape, bf16 = self._scale_shape, torch.bfloat16
        self.offset = self._empty(plan.zero_point, shape, torch.float32, device)
        self.input_offset = self._empty(static, (), torch.float32, device)
        self.down: nn.Parameter | None = self._empty(rank > 0, (rank, in_features), bf16, device)
        self.up: nn.Parameter | None = self._empty(rank > 0, (out_features, rank), bf16, device)

    @property
    def _scale_shape(self) -> tuple[int, ...]:
        group = self.plan.group
        return (self.out_features, -(-self.in_features // group)) if group else (self.out_features,)

    def forward(self, input: Tensor) -> Tensor:
        x = self._balanced(input)
        bias = None if self.bias is None else self.bias.float()
        y = functional.linear(self._quantized(x), self.dequantized(), bias)
        if self.down is not None and self.up is not None:
            y = y + x @ self.down.float().T @ self.up.float().T
        return y.to(input.dtype).reshape(*input.shape[:-1], self.out_features)

    def dequantized(self) -> Tensor:
        """(N, K) fp32: the weight that the codes stand for, without the low-rank branch."""
        codes = unpack(self.weight, self.plan.weight_format, self.in_features)
        return Grid(self.scale, self.offset, self.plan.group).values(codes)

    def _quantized(self, x: Tensor) -> Tensor:
        """(M, K) fp32 -> (M, K): on the grid of each token, or on the static one."""
        plan = self.plan
        if self.input_scale is None:
            return fake_quantize(
                x, plan.activation_format, group=plan.group, zero_point=plan.zero_point
            )
        offset = None if self.input_offset is None else self.input_offset[None]
        grid = Grid(self.input_scale[None], offset)
        return grid.values(grid.codes(x, plan.activation_format))
