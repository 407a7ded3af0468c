"""Outlier channels by construction: the same function, with activations that are hard to quantize.

Small networks trained briefly have mild activations; large diffusion transformers have a few
channels far above the rest (incoherence max|x| / mean|x| of 40 and more). This module puts such
channels into any PixArt or Latte transformer without changing what it computes. A channel is scaled
up where it is made and its weight columns are scaled down where it is read:

- modulated inputs of self-attention and feed-forward: LN(h) (1 + scale) + shift with scale and
  shift the sum of a block's ``scale_shift_table`` and of ``adaln_single.linear``, which all blocks
  share. c (1 + scale) needs table' = c table + (c - 1) and rows' = c rows, c (shift) likewise, so a
  channel has one factor for all blocks;
- inputs of the attentions' output projections, through ``to_v``;
- caption tokens, through ``caption_projection.linear_2``.

Factors are powers of two, so the scaling itself rounds nothing. It declines to touch the inputs of
``attn2.to_q`` (the bare residual stream) and of ``ff.net.2`` (behind a GELU, which does not scale).
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


@torch.no_grad()
def stress_(
    transformer: nn.Module, *, factor: float = 16.0, share: float = 1 / 64, seed: int = 0
) -> None:
    """Scale a ``share`` of channels (at least one) by ``factor``, in place, in float32 or wider."""
    if not hasattr(transformer, "adaln_single") or not hasattr(transformer, "transformer_blocks"):
        raise PipelineError(
            f"A stress variant is made of a PixArt or Latte transformer, not of a"
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
        (_SHIFT_MSA, _SCALE_MSA, ("attn1.to_q", "attn1.to_k", "attn1.to_v")),
        (_SHIFT_MLP, _SCALE_MLP, ("ff.net.0.proj",)),
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
            for name in readers:
                block.get_submodule(name).weight /= up

    attentions = [
        attention
        for block in blocks
        for attention in (block.attn1, block.attn2)
        if attention is not None
    ]
    for attention in attentions:
        up = factors(attention.to_v.out_features, attention.to_v.weight)
        _scale_rows(attention.to_v, up)
        attention.to_out[0].weight /= up

    if getattr(model, "caption_projection", None) is not None:
        maker = model.caption_projection.linear_2
        up = factors(maker.out_features, maker.weight)
        _scale_rows(maker, up)
        for block in blocks:
            if block.attn2 is not None:
                block.attn2.to_k.weight /= up
                block.attn2.to_v.weight /= up


def _scale_rows(linear: Any, up: Tensor) -> None:
    linear.weight *= up[:, None]
    if linear.bias is not None:
        linear.bias *= up


def write_stress(source: str | Path, out: str | Path) -> Path:
    """Write the pipeline in ``source`` with a stressed transformer, in float32, atomically."""
    import diffusers

    source, out = Path(source), Path(out)
    class_name = json.loads((source / "model_index.json").read_text())["transformer"][1]
    transformer = getattr(diffusers, class_name).from_pretrained(
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
