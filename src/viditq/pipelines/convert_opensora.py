"""From a published checkpoint of Open-Sora to a pipeline directory.

The checkpoint is the network alone. Text encoder, tokenizer and autoencoder come from wherever
their own ``from_pretrained`` finds them: a directory, or a repository on the hub, that is the part
itself or a pipeline that has it. The sampler is the one of the authors. What does not fit is
refused before the text encoder, the largest part, is read.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import viditq
from viditq.errors import InputError
from viditq.files import atomic_directory, check_replaceable, write_atomic
from viditq.models.opensora_checkpoint import read_tensors, stdit_from
from viditq.pipelines.sources import quiet_libraries

__all__ = ["TEXT_ENCODER", "VAE", "convert_opensora"]

TEXT_ENCODER = "DeepFloyd/t5-v1_1-xxl"
VAE = "stabilityai/sd-vae-ft-ema"

MARKER = "converted.json"
"""What only an output of :func:`convert_opensora` has."""

SIZE_OF_SCALE_1 = 512
"""At which size in pixels Open-Sora's positions are not scaled; at others in proportion."""

MAX_SHARD_SIZE = "5GB"


def convert_opensora(
    checkpoint: str | Path,
    out: str | Path,
    *,
    text_encoder: str | Path = TEXT_ENCODER,
    vae: str | Path = VAE,
    size: int = 512,
    frames: int = 16,
    heads: int = 16,
    space_scale: float | None = None,
    time_scale: float = 1.0,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint of Open-Sora 1.0 as a pipeline in diffusers layout.

    Args:
        checkpoint: ``.pth`` or ``.safetensors`` of the network.
        out: directory to write; must be new or empty, or an earlier output with ``overwrite``.
        text_encoder: directory or hub id of a T5 with its tokenizer, or of a pipeline with both.
        vae: directory or hub id of an ``AutoencoderKL``, or of a pipeline with one.
        size: height and width of the videos, in pixels.
        frames: of a video.
        heads: of the attention.
        space_scale, time_scale: of the positions; by default ``size / 512``, and 1.
        overwrite: replace an earlier output.

    Returns:
        ``out``.

    Raises:
        InputError: with what is wrong in the checkpoint or does not fit; nothing is written.
    """
    import diffusers
    import transformers

    from viditq.pipelines.opensora import OpenSoraPipeline, iddpm

    t5_class: Any = transformers.T5EncoderModel
    checkpoint, out = Path(checkpoint), Path(out)
    check_replaceable(out, marker=MARKER, overwrite=overwrite)
    tensors = read_tensors(checkpoint)
    with quiet_libraries():
        autoencoder = _part(vae, "vae", diffusers.AutoencoderKL.from_pretrained)
        network = stdit_from(
            tensors,
            str(checkpoint),
            sample_size=_latent_size(size, autoencoder),
            video_length=frames,
            num_attention_heads=heads,
            spatial_interpolation_scale=space_scale or size / SIZE_OF_SCALE_1,
            temporal_interpolation_scale=time_scale,
        )
        wanted = network.config
        _match(
            checkpoint,
            "latent channels",
            wanted.in_channels,
            vae,
            autoencoder.config.latent_channels,
        )
        t5 = _part(text_encoder, "text_encoder", transformers.T5Config.from_pretrained)
        _match(checkpoint, "caption channels", wanted.caption_channels, text_encoder, t5.d_model)
        pipe = OpenSoraPipeline(
            _part(text_encoder, "tokenizer", transformers.AutoTokenizer.from_pretrained),
            _part(text_encoder, "text_encoder", partial(t5_class.from_pretrained, dtype="auto")),
            autoencoder,
            network,
            iddpm(),
        )
        with atomic_directory(out, marker=MARKER, overwrite=overwrite) as part:
            pipe.save_pretrained(part, max_shard_size=MAX_SHARD_SIZE)
            told = {"checkpoint": checkpoint.name, "viditq": viditq.__version__}
            write_atomic(part / MARKER, json.dumps(told, indent=1) + "\n")
    return out


def _part(source: str | Path, folder: str, load: Callable[..., Any]) -> Any:
    """What ``load`` finds at ``source`` itself or in its ``folder``."""
    own, nested = {}, {"subfolder": folder}
    if Path(source).is_dir():
        places = [nested if (Path(source) / folder).is_dir() else own]
    elif str(source).count("/") == 1 and not str(source).startswith((".", "/")):
        places = [own, nested]
    else:
        raise InputError(
            f"There is no directory {source}; the {folder} is given as one, or as a hub id like "
            f"owner/name."
        )
    reasons = []
    for place in places:
        try:
            return load(source, **place)
        except Exception as error:
            reasons.append(" ".join(str(error).split())[:200] or type(error).__name__)
    raise InputError(f"No {folder} can be loaded from {source} ({reasons[0]}).")


def _latent_size(size: int, autoencoder: Any) -> int:
    factor = 2 ** (len(autoencoder.config.block_out_channels) - 1)
    if size < factor or size % factor:
        raise InputError(f"size is {size}; the autoencoder makes multiples of {factor} pixels.")
    return size // factor


def _match(checkpoint: Path, what: str, wanted: int, source: str | Path, found: int) -> None:
    if wanted != found:
        raise InputError(f"{checkpoint} has {wanted} {what}, {source} has {found}; give another.")
