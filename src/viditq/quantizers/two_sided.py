"""Rounding that minds both sides of a layer: what it reads, and what its output is used for.

GPTQ takes the error of one output channel as lost once its columns are rounded. But the model reads
the channels together: queries meet keys in a dot product, and what is added to the residual stream
is mostly noise that later layers never look at. With ``G`` (N, N), the second moment of the
gradient at the layer's output, an error ``E = W - Ŵ`` costs ``tr(G E M Eᵀ)``, the Kronecker form of
the model's own error (YAQA, arXiv 2505.22988, section 3). So rows are rounded in the order of what
they cost, some at a time, each time by GPTQ, and their error is then made up for, as far as
possible, in the rows that are not yet rounded: the same elimination that GPTQ does with columns.

YAQA feeds back entry by entry; rows that are rounded together here ignore each other. On layers 256
wide, sixteen at a time, that is a sixteenth of all pairs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from viditq.formats import TCQ4, Format
from viditq.quantizers.metric import Metric
from viditq.quantizers.packing import levels
from viditq.quantizers.rounding import round_in

__all__ = ["round_two_sided", "two_sided_error"]

PARTS = 16
"""Rows are rounded in this many parts, one after the other."""

TRELLIS_PARTS = 64
"""For trellis-coded numbers, whose rows take as long however they are parted."""


def round_two_sided(
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    fmt: Format,
    moment: Tensor,
    gradients: Sequence[Tensor],
    *,
    sweeps: int,
    damping: float = 0.05,
) -> list[tuple[Tensor, Tensor]]:
    """Round the weights of all layers that read one input.

    Args:
        weights: (N_i, K) float, of each layer.
        scales: (N_i,) fp32, where to start; or (N_i, K), the scale under each weight, which is
            kept.
        fmt: an integer format.
        moment: (K, K) second moment (or covariance) of the input.
        gradients: (N_i, N_i) second moment of the gradient at each layer's output.
        sweeps: rounds of coordinate descent with refitted scales in each part.
        damping: of the gradients' moments, as a share of the diagonal's mean.

    Returns:
        For each layer, codes (N_i, K) int8 and the scale as it is now.
    """
    metric = Metric.of(moment)
    layers = [
        _Rows(weight.float(), scale.float(), fmt, Metric.of(gradient, damping))
        for weight, scale, gradient in zip(weights, scales, gradients, strict=True)
    ]
    for part in range(parts := TRELLIS_PARTS if fmt is TCQ4 else PARTS):
        # Layers do not mind each other, so the same part of each is rounded in one go.
        spans = [layer.span(part, parts) for layer in layers]
        sizes = [span.stop - span.start for span in spans]
        pairs = list(zip(layers, spans, strict=True))
        target = torch.cat([layer.target(span) for layer, span in pairs])
        start = torch.cat([layer.scale[span] for layer, span in pairs])
        codes, scale = round_in(target, start, fmt, metric, sweeps)
        for (layer, span), own_codes, own_scale in zip(
            pairs, codes.split(sizes), scale.split(sizes), strict=True
        ):
            layer.settle(span, own_codes, own_scale)
    return [layer.result() for layer in layers]


def two_sided_error(error: Tensor, moment: Tensor, gradient: Tensor) -> float:
    """``tr(G E M Eᵀ)`` of ``error`` (N, K), with ``moment`` (K, K) and ``gradient`` (N, N)."""
    return float(((gradient @ error) * (error @ moment)).sum())


class _Rows:
    """One layer while its rows are being rounded, those that cost most first."""

    def __init__(self, weight: Tensor, scale: Tensor, fmt: Format, metric: Metric) -> None:
        self.fmt, self.order, self.root = fmt, metric.order, metric.root
        self.weight, self.scale = weight[self.order], scale[self.order]
        self.error = torch.empty_like(self.weight)
        self.codes = torch.zeros(weight.shape, dtype=torch.int8, device=weight.device)

    def span(self, part: int, parts: int) -> slice:
        rows = len(self.weight)
        return slice(part * rows // parts, (part + 1) * rows // parts)

    def target(self, span: slice) -> Tensor:
        """These rows, moved by what those before them could not hold."""
        before = slice(span.start)
        feedback = self.root[before, span].T @ self.error[before]
        own = self.root[span, span].T
        return self.weight[span] + torch.linalg.solve_triangular(own, feedback, upper=False)

    def settle(self, span: slice, codes: Tensor, scale: Tensor) -> None:
        """Fix these rows."""
        self.codes[span], self.scale[span] = codes, scale
        steps = scale if scale.ndim == 2 else scale[:, None]
        self.error[span] = self.weight[span] - levels(codes, self.fmt) * steps

    def result(self) -> tuple[Tensor, Tensor]:
        back = self.order.argsort()
        return self.codes[back], self.scale[back]
