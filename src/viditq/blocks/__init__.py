"""Fused forwards: a block's own forward written with fused ops, one file per class of block.

:func:`fuse_` gives every block that one of them knows the class of its fused twin, a subclass:
parameters, ``state_dict``, hooks and references to the block stay, ``isinstance`` stays true, and
copies and pickles are fused too; a function put in the place of ``block.forward`` would go on
serving the original in a copy. The twin has the same class name, by which diffusers finds blocks
to compile, to place or to offload.

A fused block computes what its layers would (equal within rounding). What it cannot compute it
leaves, call by call, to the layers' own forwards; see :mod:`viditq.blocks.products` for a layer and
each twin for the block as a whole.
"""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from viditq.ops import fastest_backend

__all__ = ["fuse_", "has_fused_form", "is_faster", "is_fused", "unfuse_"]


def fuse_(model: nn.Module) -> int:
    """Fuse every block of ``model`` that has a fused form and a quantized layer, in place.

    Returns:
        how many blocks are newly fused.
    """
    from viditq.blocks.products import prepare_

    twins, fused = _twins(), 0
    for module in model.modules():
        twin = twins.get(type(module))
        if twin is not None and twin.takes(module):
            module.__class__ = twin
            prepare_(module, twin.shared_inputs)
            fused += 1
    if fused:
        _make_known(twins)
    return fused


def unfuse_(model: nn.Module) -> int:
    """Take :func:`fuse_` back, in place; returns how many blocks were fused."""
    originals = {twin: original for original, twin in _twins().items()}
    blocks: list[Any] = [module for module in model.modules() if type(module) in originals]
    for block in blocks:
        block.__class__ = originals[type(block)]
    return len(blocks)


def is_fused(block: nn.Module) -> bool:
    """Whether ``block`` is one that :func:`fuse_` has fused."""
    return type(block) in _twins().values()


def has_fused_form(block: nn.Module) -> bool:
    """Whether :func:`fuse_` knows the class of ``block``, or has fused it already."""
    return type(block) in _twins() or is_fused(block)


def _twins() -> dict[type, Any]:
    """The fused twin of each class of blocks that has one."""
    # diffusers takes seconds to import; whoever has a model has waited for it already.
    from diffusers.models import attention
    from diffusers.models.transformers import (
        cogvideox_transformer_3d,
        sana_transformer,
        transformer_flux,
        transformer_flux2,
        transformer_hunyuan_video,
        transformer_ltx,
        transformer_qwenimage,
        transformer_wan,
    )

    from viditq.blocks import (
        basic,
        cogvideox,
        flux,
        flux2,
        hunyuan_video,
        latte_class,
        ltx,
        qwen_image,
        sana,
        sd3,
        stdit,
        wan,
    )
    from viditq.models import latte_class as latte
    from viditq.models import stdit as open_sora
    from viditq.models import stdit3 as open_sora_3

    return {
        attention.BasicTransformerBlock: basic.BasicTransformerBlock,
        attention.JointTransformerBlock: sd3.JointTransformerBlock,
        cogvideox_transformer_3d.CogVideoXBlock: cogvideox.CogVideoXBlock,
        transformer_flux.FluxTransformerBlock: flux.FluxTransformerBlock,
        transformer_flux.FluxSingleTransformerBlock: flux.FluxSingleTransformerBlock,
        transformer_flux2.Flux2TransformerBlock: flux2.Flux2TransformerBlock,
        transformer_flux2.Flux2SingleTransformerBlock: flux2.Flux2SingleTransformerBlock,
        transformer_hunyuan_video.HunyuanVideoTransformerBlock: (
            hunyuan_video.HunyuanVideoTransformerBlock
        ),
        transformer_hunyuan_video.HunyuanVideoSingleTransformerBlock: (
            hunyuan_video.HunyuanVideoSingleTransformerBlock
        ),
        transformer_qwenimage.QwenImageTransformerBlock: qwen_image.QwenImageTransformerBlock,
        transformer_ltx.LTXVideoTransformerBlock: ltx.LTXVideoTransformerBlock,
        sana_transformer.SanaTransformerBlock: sana.SanaTransformerBlock,
        latte.LatteClassBlock: latte_class.LatteClassBlock,
        open_sora.STDiTBlock: stdit.STDiTBlock,
        open_sora_3.STDiT3Block: stdit.STDiT3Block,
        transformer_wan.WanTransformerBlock: wan.WanTransformerBlock,
    }


def _make_known(twins: dict[type, Any]) -> None:
    """Let diffusers' caches, which know a block by its very class, treat twins as the originals."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    for original, twin in twins.items():
        with suppress(ValueError):  # unless it knows the original no more than the twin
            TransformerBlockRegistry.register(twin, replace(TransformerBlockRegistry.get(original)))


def is_faster(device: torch.device | str) -> bool:
    """Whether fused blocks gain time on ``device``: where ops run kernels of their own.

    Where they run their definitions, nothing makes those faster, and results stay those of the
    layers, bit by bit.
    """
    return fastest_backend(torch.device(device)) != "reference"
