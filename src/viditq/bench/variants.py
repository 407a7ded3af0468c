"""The ways a model is run: float, ours in several forms, and a peer's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from viditq.bench.peer import quantize_peer_
from viditq.bench.random_models import block_linears, quantize_random_
from viditq.bench.record import CannotRun
from viditq.blocks import fuse_
from viditq.errors import InputError
from viditq.nn import QuantLinear
from viditq.plan import LayerPlan

__all__ = ["VARIANTS", "Prepared", "Variant", "compile_blocks_", "prepare_", "variants_named"]


@dataclass(frozen=True)
class Variant:
    """One way to run a model.

    Attributes:
        name: on the command line and in tables.
        plan: of every block linear; None for floats.
        fused: blocks run with viditq's fused ops; None: those that have a fused form.
        compiled: each repeated block is compiled, once for all that are alike.
        graph: what is timed replays a CUDA graph; None: if it can be captured.
        tuned: layers that are slower than bf16 compute in bf16.
        peer: torchao's kind of quantization.
        error: largest relative error of the output, against bf16.
    """

    name: str
    plan: LayerPlan | None = None
    fused: bool | None = False
    compiled: bool = False
    graph: bool | None = False
    tuned: bool = False
    peer: str | None = None
    error: float = 0.1

    @property
    def by_default(self) -> bool:
        """Run where no variant is named: ours, and not one of the others in disguise."""
        return self.peer is None and self.fused is not None


_W8A8 = LayerPlan(smooth=0.5, hadamard=128)
_W4A8 = LayerPlan(weight="int4", smooth=0.5, hadamard=128)
_UNBALANCED = LayerPlan()
_STATIC = LayerPlan(granularity="tensor", smooth=0.5, hadamard=128)

_ALL = (
    Variant("bf16"),
    Variant("bf16-compiled", compiled=True),
    Variant("bf16-graph", graph=True),
    Variant("w8a8", _W8A8),
    Variant("w8a8-compiled", _W8A8, compiled=True),
    Variant("w8a8-fused", _W8A8, fused=True),
    Variant("w8a8-fused-compiled", _W8A8, fused=True, compiled=True),
    Variant("w8a8-fused-graph", _W8A8, fused=True, graph=True),
    Variant("w8a8-fused-tuned-graph", _W8A8, fused=True, graph=True, tuned=True),
    Variant("w8a8-unbalanced", _UNBALANCED),
    Variant("w8a8-fused-unbalanced", _UNBALANCED, fused=True),
    Variant("w8a8-fused-unbalanced-graph", _UNBALANCED, fused=True, graph=True),
    Variant("w8a8-static", _STATIC),
    Variant("w8a8-fused-static", _STATIC, fused=True),
    Variant("w8a8-fused-static-graph", _STATIC, fused=True, graph=True),
    # 4-bit weights of a normal distribution, rounded to the nearest, are 14 % off in each layer.
    Variant("w4a8", _W4A8, error=0.5),
    Variant("w4a8-fused", _W4A8, fused=True, error=0.5),
    Variant("w4a8-fused-graph", _W4A8, fused=True, graph=True, error=0.5),
    # As far as a model has fused forms and can be captured: for tables of many models.
    Variant("bf16-auto", fused=None, graph=None),
    Variant("w8a8-auto", _W8A8, fused=None, graph=None),
    Variant("w4a8-auto", _W4A8, fused=None, graph=None, error=0.5),
    Variant("torchao-int8-compiled", peer="int8", compiled=True),
    Variant("torchao-fp8-compiled", peer="fp8", compiled=True),
)
VARIANTS = {variant.name: variant for variant in _ALL}


def variants_named(names: Sequence[str], *, torchao: bool) -> list[Variant]:
    """The variants called so, or all but ``auto``; and torchao's, if asked for."""
    if unknown := [name for name in names if name not in VARIANTS]:
        raise InputError(f"No variant {unknown[0]!r}; give one of {', '.join(VARIANTS)}.")
    ours = [VARIANTS[name] for name in names] or [v for v in _ALL if v.by_default]
    peers = [v for v in _ALL if torchao and v.peer is not None and v not in ours]
    return ours + peers


@dataclass(frozen=True)
class Prepared:
    """What became of a model.

    Attributes:
        weight_bytes: of the block linears with what quantization added; None without adapter, and
            for a peer.
        fused_blocks: how many blocks run fused.
    """

    weight_bytes: int | None
    fused_blocks: int


def prepare_(
    model: nn.Module,
    variant: Variant,
    lists: Sequence[str],
    amax: Mapping[str, Tensor] | None,
) -> Prepared:
    """Turn a float model into the variant, in place.

    Args:
        model: with random weights.
        variant: what to make of it.
        lists: names of its lists of repeated blocks.
        amax: () largest magnitude of each layer's balanced input, for static scales.

    Raises:
        CannotRun: something that the variant needs is not here.
    """
    infos = block_linears(model)
    size = sum(2 * info.in_features * info.out_features for info in infos.values()) or None
    if variant.plan is not None:
        if not infos:
            raise CannotRun(f"no adapter for {type(model).__name__}")
        quantize_random_(model, variant.plan, amax)
        size = sum(m.size_bytes for m in model.modules() if isinstance(m, QuantLinear))
    fused = 0 if variant.fused is False else fuse_(model)
    if variant.fused and not fused:
        raise CannotRun(f"no block of {type(model).__name__} has a fused form")
    if variant.peer is not None:
        size = None
        _quantize_peer_(model, variant.peer, lists)
    if variant.compiled:
        compile_blocks_(model, lists)
    return Prepared(size, fused)


def compile_blocks_(model: nn.Module, lists: Sequence[str]) -> None:
    """Compile every block of ``lists`` by itself; those that are alike share the code."""
    torch.compiler.reset()
    for name in lists:
        for block in model.get_submodule(name).children():
            block.compile(dynamic=False)


def _quantize_peer_(model: nn.Module, kind: str, lists: Sequence[str]) -> None:
    """torchao on the layers that viditq would quantize; without adapter, on all but modulation."""
    planned, prefixes = block_linears(model), tuple(f"{name}." for name in lists)

    def wanted(module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Linear):
            return False
        return name in planned if planned else name.startswith(prefixes) and "norm" not in name

    quantize_peer_(model, kind, wanted)
