"""From published checkpoints of Open-Sora to a pipeline directory.

A checkpoint is the network alone. Text encoder, tokenizer and autoencoder come from elsewhere
(:mod:`viditq.pipelines.conversion`); the autoencoder of 1.2 has a file of its own in addition. The
sampler is the one of the authors. What does not fit is refused before the text encoder, the largest
part, is read.
"""

from functools import partial
from pathlib import Path
from typing import Any

from viditq.errors import InputError
from viditq.models.opensora_checkpoint import is_stdit3, stdit3_from, stdit_from
from viditq.models.opensora_vae_checkpoint import image_autoencoder_weights, temporal_decoder_from
from viditq.models.published import check_tensors, read_tensors
from viditq.pipelines.conversion import (
    check_out,
    image_autoencoder,
    match,
    part_of,
    write_pipeline,
)
from viditq.pipelines.families import family_named
from viditq.pipelines.sources import quiet_libraries

__all__ = ["TEXT_ENCODER", "convert_opensora"]

TEXT_ENCODER = "DeepFloyd/t5-v1_1-xxl"
VAE_1_0 = "stabilityai/sd-vae-ft-ema"
VAE_1_2 = "PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers"

SIZE_OF_SCALE_1 = 512
"""At which size in pixels the positions of 1.0 are not scaled; at others in proportion."""


def convert_opensora(
    checkpoint: str | Path,
    out: str | Path,
    *,
    text_encoder: str | Path = TEXT_ENCODER,
    vae: str | Path | None = None,
    temporal_vae: str | Path | None = None,
    size: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    heads: int = 16,
    space_scale: float | None = None,
    time_scale: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint of Open-Sora 1.0 or 1.2 as a pipeline in diffusers layout.

    Args:
        checkpoint: ``.pth`` or ``.safetensors`` of the network.
        out: directory to write; must be new or empty, or an earlier output with ``overwrite``.
        text_encoder: directory or hub id of a T5 with its tokenizer, or of a pipeline with both.
        vae: directory or hub id of an ``AutoencoderKL``, or of a pipeline with one; by default the
            one that Open-Sora names.
        temporal_vae: 1.2: the file of its autoencoder, ``.safetensors`` or ``.pth``.
        size: height of the videos in pixels, for 1.0 also their width; by default 512, for 1.2 240.
        width: 1.2: of the videos in pixels, unless that is changed later; by default 426.
        frames: of a video; by default 16, for 1.2 51.
        heads: of the attention.
        space_scale, time_scale: 1.0: of the positions; by default ``size / 512``, and 1.
        overwrite: replace an earlier output.

    Returns:
        ``out``.

    Raises:
        InputError: with what is wrong in the checkpoint or does not fit; nothing is written.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    check_out(out, overwrite)
    tensors = read_tensors(checkpoint)
    with quiet_libraries():
        if is_stdit3(tensors):
            _refuse(checkpoint, "1.2", space_scale=space_scale, time_scale=time_scale)
            sizes = {"height": size or 240, "width": width or 426, "num_frames": frames or 51}
            network = stdit3_from(tensors, str(checkpoint), num_attention_heads=heads)
            parts = _parts_1_2(checkpoint, vae or VAE_1_2, temporal_vae)
            name = "OpenSora12Pipeline"
        else:
            _refuse(checkpoint, "1.0", width=width, temporal_vae=temporal_vae)
            sizes, parts = {}, _parts_1_0(vae or VAE_1_0)
            name = "OpenSoraPipeline"
            size = SIZE_OF_SCALE_1 if size is None else size
            network = stdit_from(
                tensors,
                str(checkpoint),
                sample_size=_latent_size(size, parts["vae"]),
                video_length=frames or 16,
                num_attention_heads=heads,
                spatial_interpolation_scale=space_scale or size / SIZE_OF_SCALE_1,
                temporal_interpolation_scale=time_scale or 1.0,
            )
        channels, found = network.config.in_channels, parts["vae"].config.latent_channels
        match(checkpoint, "latent channels", channels, "the autoencoder", found)
        texts = _text_parts(text_encoder, checkpoint, network.config.caption_channels)
        pipe = family_named(name).pipeline_class(transformer=network, **parts, **texts, **sizes)
        write_pipeline(pipe, checkpoint, out, overwrite)
    return out


def _text_parts(source: str | Path, checkpoint: Path, width: int) -> dict[str, Any]:
    """Tokenizer and text encoder, which has to be as wide as the captions of ``checkpoint``."""
    from transformers import AutoTokenizer, T5Config, T5EncoderModel

    config = part_of(source, "text_encoder", T5Config.from_pretrained)
    match(checkpoint, "caption channels", width, source, config.d_model)
    encoder: Any = T5EncoderModel
    return {
        "tokenizer": part_of(source, "tokenizer", AutoTokenizer.from_pretrained),
        "text_encoder": part_of(
            source, "text_encoder", partial(encoder.from_pretrained, dtype="auto")
        ),
    }


def _parts_1_0(source: str | Path) -> dict[str, Any]:
    """Autoencoder and sampler."""
    from viditq.pipelines.video import iddpm

    return {"vae": image_autoencoder(source), "scheduler": iddpm()}


def _parts_1_2(checkpoint: Path, source: str | Path, file: str | Path | None) -> dict[str, Any]:
    """Likewise, with a decoder in time; ``file`` may hold both parts of the autoencoder."""
    from viditq.pipelines.opensora12 import rectified_flow

    if file is None:
        raise InputError(
            f"{checkpoint} is of Open-Sora 1.2, whose autoencoder has a file of its own; give it "
            f"with --temporal-vae (model.safetensors of hpcai-tech/OpenSora-VAE-v1.2)."
        )
    tensors = read_tensors(file)
    decoder = temporal_decoder_from(tensors, str(file))
    autoencoder = image_autoencoder(source)
    if weights := image_autoencoder_weights(tensors):
        expected = {name: tensor.shape for name, tensor in autoencoder.state_dict().items()}
        check_tensors(f"the autoencoder of {source}", weights, expected, str(file))
        autoencoder.load_state_dict(weights)
    return {"vae": autoencoder, "temporal_decoder": decoder, "scheduler": rectified_flow()}


def _refuse(checkpoint: Path, version: str, **options: Any) -> None:
    """Options of the other version are a mistake."""
    for name, value in options.items():
        if value is not None:
            raise InputError(
                f"{checkpoint} is of Open-Sora {version}, which has no {name}; leave it out."
            )


def _latent_size(size: int, autoencoder: Any) -> int:
    factor = 2 ** (len(autoencoder.config.block_out_channels) - 1)
    if size < factor or size % factor:
        raise InputError(f"size is {size}; the autoencoder makes multiples of {factor} pixels.")
    return size // factor
