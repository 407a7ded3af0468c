"""Outlier channels by construction: the same function, with activations that are hard to quantize.

Small networks trained briefly have mild activations; large diffusion transformers have a few
channels far above the rest (incoherence max|x| / mean|x| of 40 and more). This module puts such
channels into any PixArt, Latte or Open-Sora 1.0 transformer without changing what it computes. A
channel is scaled up where it is made and its weight columns are scaled down where it is read:

- modulated inputs of self-attention and feed-forward: LN(h) (1 + scale) + shift with scale and
  shift the sum of a block's ``scale_shift_table`` and of ``adaln_single.linear``, which all blocks
  share. c (1 + scale) needs table' = c table + (c - 1) and rows' = c rows, c (shift) likewise, so a
  channel has one factor for all blocks;
- inputs of the attentions' output projections, through ``to_v`` or the values of a fused layer;
- caption tokens, through ``caption_projection.linear_2``.

Factors are powers of two, so the scaling itself rounds nothing. It declines to touch the inputs of
``attn2.to_q`` and of Open-Sora's temporal attention (the bare residual stream) and of ``ff.net.2``
(behind a GELU, which does not scale).
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from viditq.errors import PipelineError

__all__ = ["VERSION", "stress_", "write_stress"]

# Part of the cache's file name: raise it when the variant changes.
VERSION = 1

# Rows of scale_shift_table and sixths of adaln_single.linear, in diffusers' order.
_SHIFT_MSA, _SCALE_MSA, _SHIFT_MLP, _SCALE_MLP = 0, 1, 3, 4
# Attentions in a block; values are the last rows of the layer that makes them.
_ATTENTIONS = ("attn1", "temporal_attn", "attn2")
_READERS = ("to_q", "to_k", "to_v", "to_qkv")
_CAPTION_READERS = ("to_k", "to_v", "to_kv")
_MAKERS = ("to_v", "to_kv", "to_qkv")


@torch.no_grad()
def stress_(
    transformer: nn.Module, *, factor: float = 16.0, share: float = 1 / 64, seed: int = 0
) -> None:
    """Scale a ``share`` of channels (at least one) by ``factor``, in place, in float32 or wider."""
    if not hasattr(transformer, "adaln_single") or not hasattr(transformer, "transformer_blocks"):
        raise PipelineError(
            f"A stress variant is made of a PixArt, Latte or Open-Sora 1.0 transformer, not of a"
            f" {type(transformer).__name__}."
        )
    model: Any = transformer
    generator = torch.Generator().manual_seed(seed)
    blocks = [*model.transformer_blocks, *getattr(model, "temporal_transformer_blocks", [])]

    def factors(width: int, like: Tensor) -> Tensor:
        """(width,) ones, but ``factor`` at random places."""
        chosen = torch.randperm(width, generator=generator)[: max(1, round(width * share))]
        result = torch.ones(width)
        result[chosen] = factor
        return result.to(like)

    linear = model.adaln_single.linear
    width = linear.in_features
    for shift, scale, readers in (
        (_SHIFT_MSA, _SCALE_MSA, lambda block: _layers(block.attn1, _READERS)),
        (_SHIFT_MLP, _SCALE_MLP, lambda block: [block.ff.net[0].proj]),
    ):
        up = factors(width, linear.weight)
        for part in (shift, scale):
            rows = slice(part * width, (part + 1) * width)
            linear.weight[rows] *= up[:, None]
            linear.bias[rows] *= up
        for block in blocks:
            block.scale_shift_table[shift] *= up
            block.scale_shift_table[scale] *= up
            block.scale_shift_table[scale] += up - 1
            for layer in readers(block):
                layer.weight /= up

    attentions = [attention for block in blocks for attention in _layers(block, _ATTENTIONS)]
    for attention in attentions:
        (maker,) = _layers(attention, _MAKERS)
        out = attention.to_out
        out = out if isinstance(out, nn.Linear) else out[0]
        up = factors(out.in_features, out.weight)
        _scale_last_rows(maker, up)
        out.weight /= up

    if getattr(model, "caption_projection", None) is not None:
        maker = model.caption_projection.linear_2
        up = factors(maker.out_features, maker.weight)
        _scale_last_rows(maker, up)
        for block in blocks:
            for layer in _layers(block.attn2, _CAPTION_READERS):
                layer.weight /= up


def _layers(module: Any, names: tuple[str, ...]) -> list[Any]:
    """Those of the submodules called ``names`` that ``module`` has; none of ``None``."""
    return [layer for name in names if (layer := getattr(module, name, None)) is not None]


def _scale_last_rows(linear: Any, up: Tensor) -> None:
    """Multiply the last outputs of ``linear``, as many as ``up`` (N,) has factors, by them."""
    linear.weight[-len(up) :] *= up[:, None]
    if linear.bias is not None:
        linear.bias[-len(up) :] *= up


def write_stress(source: str | Path, out: str | Path) -> Path:
    """Write the pipeline in ``source`` with a stressed transformer, in float32, atomically."""
    from viditq.models import transformer_class

    source, out = Path(source), Path(out)
    class_name = json.loads((source / "model_index.json").read_text())["transformer"][1]
    transformer = transformer_class(class_name).from_pretrained(
        source / "transformer", dtype=torch.float32
    )
    stress_(transformer)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        made = Path(folder) / "pipeline"
        shutil.copytree(source, made, ignore=shutil.ignore_patterns("transformer"))
        transformer.save_pretrained(made / "transformer")
        try:
            made.replace(out)
        except OSError:
            # another process was first
            if not (out / "model_index.json").is_file():
                raise
    return out
