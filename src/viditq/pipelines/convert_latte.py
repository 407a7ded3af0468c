"""From published checkpoints of Latte for classes to a pipeline directory.

A checkpoint is the network alone. The autoencoder comes from elsewhere
(:mod:`viditq.pipelines.conversion`), and so do the names of the classes, if they are to have names.
The sampler is the one of the authors. Latte for texts is in diffusers layout already.
"""

from pathlib import Path

from viditq.errors import InputError
from viditq.models.latte_class_checkpoint import latte_class_from
from viditq.models.published import read_tensors
from viditq.pipelines.conversion import check_out, image_autoencoder, match, write_pipeline
from viditq.pipelines.families import family_named
from viditq.pipelines.sources import quiet_libraries

__all__ = ["convert_latte"]

VAE = "stabilityai/sd-vae-ft-ema"


def convert_latte(
    checkpoint: str | Path,
    out: str | Path,
    *,
    vae: str | Path = VAE,
    labels: str | Path | None = None,
    heads: int = 16,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint of Latte for classes as a pipeline in diffusers layout.

    Args:
        checkpoint: ``.pt`` or ``.safetensors`` of the network.
        out: directory to write; must be new or empty, or an earlier output with ``overwrite``.
        vae: directory or hub id of an ``AutoencoderKL``, or of a pipeline with one.
        labels: text file with the names of the classes, one a line, in the order of their numbers.
        heads: of the attention.
        overwrite: replace an earlier output.

    Returns:
        ``out``.

    Raises:
        InputError: with what is wrong in the checkpoint or does not fit; nothing is written.
    """
    from viditq.pipelines.video import iddpm

    checkpoint, out = Path(checkpoint), Path(out)
    check_out(out, overwrite)
    with quiet_libraries():
        network = latte_class_from(
            read_tensors(checkpoint), str(checkpoint), num_attention_heads=heads
        )
        names = None if labels is None else _names(Path(labels), network.num_classes, checkpoint)
        autoencoder = image_autoencoder(vae)
        channels, found = network.config.in_channels, autoencoder.config.latent_channels
        match(checkpoint, "latent channels", channels, "the autoencoder", found)
        pipe = family_named("LatteClassPipeline").pipeline_class(
            autoencoder, network, iddpm(), names
        )
        write_pipeline(pipe, checkpoint, out, overwrite)
    return out


def _names(path: Path, classes: int, checkpoint: Path) -> dict[int, str]:
    """Names by number, as many as the checkpoint has classes."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a list of classes ({error}).") from None
    names = [line.strip() for line in lines if line.strip()]
    match(checkpoint, "classes", classes, path, len(names))
    return dict(enumerate(names))
