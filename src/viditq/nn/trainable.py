"""``TrainableLinear``: a quantized layer whose codes, scales, smoothing and bias can learn.

It computes what the :class:`~viditq.nn.QuantLinear` that it was made of computes, in floats: the
same op quantizes its input, and its weight is the nearest codes of a *latent* weight, measured in
steps of the grid. Rounding has no gradient, of the weight as little as of the input; it passes on
the gradient of what it rounds (the straight-through estimator, arXiv 1308.3432), so a latent weight
drifts until its code changes. A latent weight begins at its code, moved as far towards the float
weight as the code allows: weights that were nearly rounded the other way are the first to change.

Trellis codes (``tcq4``) are searched anew for every update, latent weights being what the search
(:func:`viditq.ops.round_tcq4`) is to come near; they begin at what the codes stand for. That takes
a GPU milliseconds and a processor many seconds, so codes can also stay as they are, while the rest
learns.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from viditq.errors import PlanError
from viditq.formats import TCQ4
from viditq.nn.fp8 import Fp8Linear
from viditq.nn.linear import QuantLinear
from viditq.nn.simulated import SimulatedLinear
from viditq.ops import block_hadamard, quantize_rows, round_tcq4
from viditq.quantizers import levels, pack, unpack

__all__ = ["TrainableLinear", "check_trainable"]

NEAREST = 0.49
"""How far, in steps, a latent weight may begin from its code: nearer to it than to another."""

TRELLIS_STEP = 16
"""Steps of ``tcq4``'s scale that are as long as one of ``int4``'s for the same weight."""

TRELLIS_UNIT = 10 * TRELLIS_STEP
"""Steps to a unit of a latent trellis weight: to change a path it takes more than to change a code,
so at one rate with the others they would hardly learn."""


def check_trainable(layer: QuantLinear, name: str) -> None:
    """:class:`PlanError` if ``layer``, called ``name``, has no :class:`TrainableLinear`."""
    if isinstance(layer, SimulatedLinear | Fp8Linear) or layer.input_scale is not None:
        raise PlanError(
            f"{name} cannot be refined: that takes integer weights with one scale per channel and "
            f"activations with one per token, without groups, zero points or a branch."
        )


class TrainableLinear(nn.Module):
    """``y = Q(((x - c) / (s (1 + u))) H) · (scale (1 + r) · round(latent))ᵀ + b + unit · t``.

    All parameters are fp32 and move at one rate, since each has a unit of its own.

    Attributes:
        latent: (N, K), in ``latent_unit`` steps of the scale, or ``None``.
        fixed: (N, K) what codes that stay stand for, or ``None``.
        scale_change: (N,) ``r``, relative to the scale.
        smooth_change: (K,) ``u``, relative to the smoothing, which readers of one input share; or
            ``None``.
        bias_change: (N,) ``t``, in what a step in all K weights amounts to for inputs around 1; or
            ``None``.
    """

    def __init__(
        self,
        layer: QuantLinear,
        weight: Tensor,
        smooth_change: nn.Parameter | None = None,
        *,
        codes: bool = True,
    ) -> None:
        """Of ``layer``, which stays as it is, and the float ``weight`` (N, K) that it stands for.

        ``smooth_change`` is that of another reader of the same input, which then is this one's too;
        ``codes`` says whether codes learn.

        Raises:
            PlanError: the layer is of a kind that cannot be trained.
        """
        super().__init__()
        check_trainable(layer, type(layer).__name__)
        self.layer, self.format = [layer], layer.plan.weight_format  # in a list: no submodule
        whole = unpack(layer.weight, self.format, layer.in_features).float()
        self.fixed = None if codes else whole
        trellis = self.format is TCQ4
        self.latent_unit = TRELLIS_UNIT if trellis else 1
        begun = whole / TRELLIS_UNIT if trellis else _begun(layer, whole, weight)
        self.latent = nn.Parameter(begun) if codes else None
        self.scale_change = nn.Parameter(torch.zeros_like(layer.scale))
        bias = layer.bias
        self.bias_change = None if bias is None else nn.Parameter(torch.zeros_like(layer.scale))
        if layer.smooth is not None and smooth_change is None:
            smooth_change = nn.Parameter(torch.zeros_like(layer.smooth))
        self.smooth_change = smooth_change
        step = TRELLIS_STEP if trellis else 1
        self.unit = step * layer.scale * layer.in_features**0.5

    def forward(self, input: Tensor) -> Tensor:
        layer = self.layer[0]
        _, hadamard, bits, _, center = layer.input_quantization
        x = input.reshape(-1, layer.in_features)
        x = x if center is None else x - center
        rows: Any = _Quantized.apply(x, self.smooth(), hadamard, bits)
        y = functional.linear(rows, self.steps() * self.scale()[:, None], self.bias())
        return y.to(input.dtype).reshape(*input.shape[:-1], layer.out_features)

    def steps(self) -> Tensor:
        """(N, K) float, whole numbers: the weight in steps of its scale, with the gradient passed
        straight to the latent weight."""
        if self.latent is None:
            assert self.fixed is not None
            return self.fixed
        latent = self.latent * self.latent_unit
        return latent + (levels(self.codes(), self.format) - latent).detach()

    def codes(self) -> Tensor:
        """(N, K) int8, nearest to the latent weight.

        Raises:
            ValueError: codes do not learn.
        """
        if self.latent is None:
            raise ValueError("The codes of this layer stay as they are, in the layer itself.")
        latent = self.latent.detach() * self.latent_unit
        if self.format is TCQ4:
            return round_tcq4(latent)
        return latent.round().clamp(self.format.qmin, self.format.qmax).to(torch.int8)

    def scale(self) -> Tensor:
        """(N,) per output channel."""
        return self.layer[0].scale * (1 + self.scale_change)

    def smooth(self) -> Tensor | None:
        """(K,) fp32, or ``None``."""
        smooth, change = self.layer[0].smooth, self.smooth_change
        return None if smooth is None or change is None else smooth * (1 + change)

    def bias(self) -> Tensor | None:
        """(N,) fp32, or ``None``."""
        bias = self.layer[0].bias
        return None if bias is None else bias.float() + self.unit * self.bias_change

    @torch.no_grad()
    def keep_in_range_(self) -> None:
        """Let no latent weight drift farther from the grid than its outermost cells reach."""
        if self.latent is not None and self.format is not TCQ4:
            self.latent.clamp_(self.format.qmin - NEAREST, self.format.qmax + NEAREST)

    @torch.no_grad()
    def write_(self) -> QuantLinear:
        """Put what was learned into the quantized layer, and return it."""
        layer = self.layer[0]
        if self.latent is not None:
            layer.weight.data = pack(self.codes(), self.format)
        scale, bias, smooth = self.scale().detach().clone(), self.bias(), self.smooth()
        layer.scale.data = scale
        if layer.smooth is not None and smooth is not None:
            layer.smooth.data = smooth.detach().clone()
        if layer.bias is not None and bias is not None:
            layer.bias.data = bias.detach().to(layer.bias.dtype)
        return layer


def _begun(layer: QuantLinear, codes: Tensor, weight: Tensor) -> Tensor:
    """(N, K) latent weights of ``codes`` that stand for the float ``weight``."""
    balanced = weight.float()
    if layer.smooth is not None:
        balanced = balanced * layer.smooth
    balanced = block_hadamard(balanced, layer.hadamard)
    return codes + (balanced / layer.scale[:, None] - codes).clamp(-NEAREST, NEAREST)


class _Quantized(torch.autograd.Function):
    """(M, K) float -> (M, K) fp32, balanced and on each row's grid; straight through backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, smooth: Tensor | None, hadamard: int, bits: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x, smooth)
        ctx.hadamard = hadamard
        codes, scale = quantize_rows(x, smooth, hadamard, bits)
        return codes * scale[:, None]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, smooth = ctx.saved_tensors
        gradient, of_smooth = block_hadamard(gradient, ctx.hadamard), None  # H is symmetric
        if smooth is not None:
            gradient = gradient / smooth
            of_smooth = -(gradient * x).sum(0) / smooth
        return gradient.to(x.dtype), of_smooth, None, None
