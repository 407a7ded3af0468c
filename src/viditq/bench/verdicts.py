"""Is a quantized layer faster than a float one here? What ``doctor`` and ``tune_`` ask.

Layers that read one input are measured together, as a fused block runs them: the tokens are
quantized once and multiplied once, against an ``F.linear`` in 16 bits for each layer, as it stands
in diffusers. What fusing norm, GELU, gate and residual into these ops gains is not in the times.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viditq.bench.checks import near
from viditq.bench.record import explain
from viditq.bench.tables import NOTHING, TextTable
from viditq.bench.timing import clear_memory, measure
from viditq.blocks.inputs import Plain
from viditq.blocks.products import read
from viditq.convert import group_layers
from viditq.models import LayerInfo
from viditq.nn import QuantLinear
from viditq.ops import fastest_backend, use_backend
from viditq.plan import LayerPlan, Value

__all__ = ["LayerVerdict", "judge", "readers", "shape_of", "verdict_table"]

FEW_TOKENS = 1024
"""Below, a product waits for its weight, not for arithmetic."""

LARGEST_ERROR = 0.5
CHECKED_TOKENS = 4096
"""The results of about so many, spread over all, are compared."""

BUDGET_S = 0.3


class LayerVerdict(Value):
    """All inputs of one shape, and the layers that read them.

    Attributes:
        roles: of the layers.
        layers: how many there are in the transformer.
        readers: how many of them read one such input, in one product.
        m, n, k: tokens of a call, features out of all readers together, features in.
        weight: format of the quantized weights.
        bf16_ms, ours_ms: of the readers of one input; None when nothing was measured.
        verdict: what to compute with here; None when nothing was measured.
        reason: why bf16.
    """

    roles: tuple[str, ...]
    layers: int
    readers: int = 1
    m: int
    n: int
    k: int
    weight: str
    bf16_ms: float | None = None
    ours_ms: float | None = None
    verdict: Literal["int8", "bf16"] | None = None
    reason: str | None = None

    @property
    def inputs(self) -> int:
        """How many inputs there are of this shape."""
        return self.layers // self.readers

    @property
    def is_timed(self) -> bool:
        return self.bf16_ms is not None and self.ours_ms is not None

    @property
    def all_bf16_ms(self) -> float:
        """Of all layers in bf16, as far as they were timed."""
        return self.inputs * (self.bf16_ms or 0.0)

    @property
    def all_ours_ms(self) -> float:
        """Of all layers quantized."""
        return self.inputs * (self.ours_ms or 0.0)

    @property
    def all_ms(self) -> float:
        """Of all layers, computed as the verdict says."""
        return self.all_bf16_ms if self.verdict == "bf16" else self.all_ours_ms


def verdict_table(title: str, verdicts: Iterable[LayerVerdict]) -> TextTable:
    """One row per shape."""
    return TextTable(
        title,
        ("role", "layers", "M × N × K", "bf16 ms", "ours ms", "ratio", "verdict"),
        tuple(
            (
                ", ".join(v.roles),
                str(v.layers) if v.readers == 1 else f"{v.inputs} × {v.readers}",
                f"{v.m} × {v.n} × {v.k}",
                NOTHING if v.bf16_ms is None else f"{v.bf16_ms:.3f}",
                NOTHING if v.ours_ms is None else f"{v.ours_ms:.3f}",
                NOTHING if not (v.bf16_ms and v.ours_ms) else f"{v.bf16_ms / v.ours_ms:.2f}×",
                " — ".join(filter(None, (v.verdict, v.reason))) or NOTHING,
            )
            for v in verdicts
        ),
    )


def readers(
    model: nn.Module, infos: Iterable[LayerInfo], joins: Callable[[nn.Module], bool]
) -> list[list[LayerInfo]]:
    """The layers that have one product, in forward order: readers of one input, or one layer.

    Args:
        model: with the layers.
        infos: of the layers.
        joins: whether a block multiplies the readers of one input together.
    """
    return list(
        group_layers(
            info if joins(model.get_submodule(info.block)) else replace(info, group=info.name)
            for info in infos
        ).values()
    )


def shape_of(
    alike: Sequence[Sequence[LayerInfo]], m: int, plans: Mapping[str, LayerPlan]
) -> LayerVerdict:
    """What there is to say without measuring.

    Args:
        alike: the readers of each input, all inputs of one shape.
        m: tokens of each.
        plans: by name of the layer.
    """
    first = alike[0]
    return LayerVerdict(
        roles=tuple(dict.fromkeys(info.role for group in alike for info in group)),
        layers=len(alike) * len(first),
        readers=len(first),
        m=m,
        n=sum(info.out_features for info in first),
        k=first[0].in_features,
        weight=", ".join(dict.fromkeys(plans[info.name].weight for info in first)),
    )


@torch.no_grad()
def judge(
    shape: LayerVerdict,
    x: Tensor,
    quantized: Sequence[QuantLinear],
    floats: Sequence[nn.Linear],
    obstacle: str | None = None,
    margin: float = 0.0,
) -> LayerVerdict:
    """``shape`` with times on the device of ``x`` and the verdict.

    Args:
        shape: of the layers, for the reasons.
        x: (M, K), in 16 bits.
        quantized: the readers of one input.
        floats: the same layers in the dtype of ``x``.
        obstacle: what this device lacks.
        margin: share of our time by which bf16 has to be shorter to be the verdict.
    """
    device = x.device
    clear_memory(device)
    rows = slice(None, None, -(-len(x) // CHECKED_TOKENS))

    def in_bf16() -> list[Tensor]:
        return [F.linear(x, linear.weight, linear.bias) for linear in floats]

    def in_int8() -> list[Tensor]:
        return read(Plain(x), quantized)

    try:
        with use_backend(fastest_backend(device)):
            made, exact = (torch.cat([y[rows] for y in f()], -1) for f in (in_int8, in_bf16))
            near(made, exact, LARGEST_ERROR)
            del made, exact
            bf16 = measure(in_bf16, device, BUDGET_S).median_ms
            ours = measure(in_int8, device, BUDGET_S).median_ms
    except Exception as error:
        return shape.model_copy(update={"verdict": "bf16", "reason": explain(error)})
    keeps = (1 - margin) * ours < bf16
    reason = None if keeps else obstacle or _why_slower(shape)
    return shape.model_copy(
        update={
            "bf16_ms": bf16,
            "ours_ms": ours,
            "verdict": "int8" if keeps else "bf16",
            "reason": reason,
        }
    )


def _why_slower(shape: LayerVerdict) -> str:
    if shape.m < FEW_TOKENS:
        return f"too few tokens ({shape.m}): the product is short, and launching it costs the same"
    return f"quantizing costs more than the product saves at N = {shape.n}, K = {shape.k}"
