"""The published autoencoder of Open-Sora 1.2, read into the parts of this package.

The file has an image autoencoder, whose tensors are named as in diffusers, and one in time, of
which the decoder gets the names it has here; the sizes follow from the shapes.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from viditq.errors import InputError
from viditq.models.published import check_tensors

__all__ = ["image_autoencoder_weights", "temporal_decoder_from"]

_TIME = "temporal_vae."
_DECODER = "temporal_vae.decoder."
_IMAGE = "spatial_vae.module."
_NAME = "the autoencoder of Open-Sora 1.2"

CONVOLUTIONS = "conv1|conv2|shortcut|upsample|conv_in|conv_out|post_quant_conv"
"""Modules here that are wrapped in another one there, which calls them ``conv``."""


def image_autoencoder_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a diffusers ``AutoencoderKL``."""
    return {n.removeprefix(_IMAGE): t for n, t in tensors.items() if n.startswith(_IMAGE)}


def temporal_decoder_from(tensors: Mapping[str, Tensor], where: str) -> Any:
    """The decoder in time with the weights ``tensors``, in evaluation mode.

    Its group norms have 32 groups, if it is as wide as that everywhere.

    Raises:
        InputError: naming ``where`` the tensors are from, and the first that is wrong.
    """
    from accelerate import init_empty_weights

    from viditq.models.opensora_vae import OpenSoraTemporalDecoder

    widths: dict[int, int] = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(rf"{_DECODER}block_res_blocks\.(\d+)\.0\.norm2\.weight", name):
            widths[int(match[1])] = tensor.shape[0]
    if not widths or not {"scale", "shift"} <= tensors.keys():
        raise InputError(f"{where} is no checkpoint of {_NAME}.")
    doubles = (f"{_DECODER}conv_blocks.{i}.conv.weight" in tensors for i in range(len(widths) - 1))
    mid = {name.split(".")[3] for name in tensors if name.startswith(f"{_DECODER}res_blocks.")}
    mean, std = (
        tuple(round(number, 6) for number in tensors[name].flatten().tolist())
        for name in ("shift", "scale")
    )
    with init_empty_weights():
        model: Any = OpenSoraTemporalDecoder(
            latent_channels=len(mean),
            block_out_channels=tuple(widths[i] for i in sorted(widths)),
            temporal_upsample=tuple(doubles),
            layers_per_block=len(mid),
            norm_num_groups=min(32, *widths.values()),
            latents_mean=mean,
            latents_std=std,
        )
    state = model.state_dict()
    names = {_published(name, len(widths)): name for name in state}
    decoding = (_DECODER, f"{_TIME}post_quant_conv.")
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(decoding)}
    check_tensors(_NAME, found, {name: state[ours].shape for name, ours in names.items()}, where)
    model.load_state_dict({ours: found[name] for name, ours in names.items()}, assign=True)
    return model.requires_grad_(False).eval()


def _published(name: str, widths: int) -> str:
    """What checkpoints call the tensor ``name`` of a decoder with so many widths."""
    name = re.sub(rf"\b({CONVOLUTIONS})\.", r"\1.conv.", name)
    if name.startswith("post_quant_conv."):
        return _TIME + name
    if block := re.match(r"up_blocks\.(\d+)\.(resnets|upsample)\.", name):
        # There, blocks are counted from the output.
        index, rest = widths - 1 - int(block[1]), name[block.end() :]
        resnet = rest.replace("shortcut.", "conv3.")
        is_resnet = block[2] == "resnets"
        local = (
            f"block_res_blocks.{index}.{resnet}" if is_resnet else f"conv_blocks.{index - 1}.{rest}"
        )
        return _DECODER + local
    for ours, theirs in (("conv_in.", "conv1."), ("norm_out.", "norm1."), ("mid.", "res_blocks.")):
        if name.startswith(ours):
            return _DECODER + theirs + name.removeprefix(ours)
    return _DECODER + name
