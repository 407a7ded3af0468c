"""Begins a training from trained parts: a pipeline of the same networks, or Latte's for STDiT.

STDiT and Latte embed patches, positions, times and captions alike, and end alike. A layer of Latte
is a block in the frame and one over time, each with a feed-forward; STDiT has one block for the
two. It takes the attentions in the frame and to the caption as they are, and the units of the
feed-forward with the largest weights. The empty caption begins as the text encoder's of no words.

Attention over time reads normalized tokens under a modulation and a gate of its own in Latte, bare
tokens under the other attention's gate in STDiT. Its copy is right on average: the modulation's
mean over the timesteps goes into the queries, keys and values, the ratio of the gates into the
output. Trained tokens have a standard deviation of about 1, so that is left out.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import LatteTransformer3DModel
from torch import Tensor

from viditq.zoo.text import make_tokenizer

__all__ = ["begin_from", "copy_latte_"]


def begin_from(start: Path, transformer: Any, text_encoder: Any) -> tuple[Any, Any]:
    """The networks in the pipeline directory ``start``, of the classes of the two given."""
    text_encoder = type(text_encoder).from_pretrained(start / "text_encoder", dtype=torch.float32)
    stored = json.loads((start / "transformer" / "config.json").read_text())["_class_name"]
    if stored == type(transformer).__name__:
        return type(transformer).from_pretrained(start / "transformer"), text_encoder
    copy_latte_(transformer, LatteTransformer3DModel.from_pretrained(start / "transformer"))
    length = len(transformer.null_caption)
    empty = make_tokenizer()("", padding="max_length", max_length=length, return_tensors="pt")
    with torch.no_grad():
        made = text_encoder(empty.input_ids, attention_mask=empty.attention_mask)[0]
        transformer.null_caption.copy_(made[0])
    return transformer, text_encoder


@torch.no_grad()
def copy_latte_(stdit: Any, latte: Any) -> None:
    """Copy into ``stdit`` what fits of ``latte``, of the same width and number of layers."""
    stdit.patch_embedding.weight.copy_(latte.pos_embed.proj.weight[:, :, None])
    stdit.patch_embedding.bias.copy_(latte.pos_embed.proj.bias)
    for name in ("adaln_single", "caption_projection", "proj_out"):
        getattr(stdit, name).load_state_dict(getattr(latte, name).state_dict())
    stdit.scale_shift_table.copy_(latte.scale_shift_table)
    modulation = latte.adaln_single(torch.arange(0, 1000, 50), hidden_dtype=torch.float32)[0]
    modulation = modulation.unflatten(1, (6, -1))
    pairs = zip(latte.transformer_blocks, latte.temporal_transformer_blocks, strict=True)
    for block, (spatial, temporal) in zip(stdit.transformer_blocks, pairs, strict=True):
        block.scale_shift_table.copy_(spatial.scale_shift_table)
        for attention, source in ((block.attn1, spatial.attn1), (block.attn2, spatial.attn2)):
            for name in ("to_q", "to_kv", "to_qkv"):
                if hasattr(attention, name):
                    _set_(getattr(attention, name), *_stacked(source, name))
            _set_(attention.to_out, source.to_out[0].weight, source.to_out[0].bias)
        here, there = (modulation + each.scale_shift_table for each in (spatial, temporal))
        _over_time_(block.temporal_attn, temporal.attn1, here, there)
        _keep_largest_(block.ff, spatial.ff)


def _over_time_(attention: Any, source: Any, here: Tensor, there: Tensor) -> None:
    """``here`` and ``there`` are (times, 6, C) shift, scale, gate, … of STDiT and of Latte."""
    shift, scale, _ = there.mean(0)[:3]
    weight, bias = _stacked(source, "to_qkv")
    seen = weight * (1 + scale)
    _set_(attention.to_qkv, seen - seen.mean(1, keepdim=True), bias + weight @ shift)
    gate, wanted = here[:, 2], there[:, 2]
    ratio = (gate * wanted).sum(0) / gate.square().sum(0)
    out = source.to_out[0]
    _set_(attention.to_out, ratio[:, None] * out.weight, ratio * out.bias)


def _keep_largest_(ff: Any, source: Any) -> None:
    inner, outer = source.net[0].proj, source.net[2]
    size = inner.weight.norm(dim=1) * outer.weight.norm(dim=0)
    kept = size.topk(ff.net[2].in_features).indices
    _set_(ff.net[0].proj, inner.weight[kept], inner.bias[kept])
    _set_(ff.net[2], outer.weight[:, kept], outer.bias)


def _stacked(source: Any, name: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of ``to_q``, ``to_kv`` or ``to_qkv`` from an attention with one for each."""
    layers = [getattr(source, f"to_{letter}") for letter in name.removeprefix("to_")]
    return torch.cat([one.weight for one in layers]), torch.cat([one.bias for one in layers])


def _set_(linear: Any, weight: Tensor, bias: Tensor) -> None:
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
