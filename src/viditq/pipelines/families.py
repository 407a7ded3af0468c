"""How each pipeline is called: facts, looked up by the pipeline's class name.

Everything else a pipeline needs (steps, guidance, seeds) is the same for all. Samples are as large
as the transformer was trained for, if its configuration says so. Of other pipelines they are as
large as the pipeline makes them by itself, or as its ``model_index.json`` says with the entries
``height``, ``width`` and ``num_frames``, which diffusers passes over; a loaded pipeline has them as
its attribute ``viditq_size``.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any, Literal

from torch import nn

from viditq.errors import PipelineError
from viditq.models import Adapter, adapter_named
from viditq.pipelines import image_families as images

__all__ = [
    "FAMILIES",
    "SIZES",
    "TRANSFORMER",
    "Family",
    "family",
    "family_named",
    "transformers",
]

TRANSFORMER = "transformer"

SIZES = ("height", "width", "num_frames")
"""Entries of ``model_index.json``, in pixels and frames, of pipelines that make any size."""


def _guidance_scale(scale: float, num: int) -> dict[str, Any]:  # noqa: ARG001 - is of all prompts
    return {"guidance_scale": scale}


@dataclass(frozen=True)
class Family:
    """One class of pipelines.

    Attributes:
        pipeline: class name.
        adapter: of its transformer.
        arguments: call arguments beside prompt, steps, guidance, generator and latents.
        latent_shape: of one sample's noise, as the pipeline takes it.
        max_batch: most prompts in one call for which a sample does not depend on its neighbours.
        module: where the class is, for those that diffusers does not have.
        prompts: some to calibrate with, from the transformer's configuration and how many, for
            those that do not take every text.
        guidance: how the transformer is called for classifier-free guidance: with both branches in
            one batch, once for each, or with the scale as one of its inputs.
        transformers: components of this kind; all but the first may be absent.
        scale: call arguments that say how strong guidance is, for so many prompts.
    """

    pipeline: str
    adapter: Adapter
    arguments: Callable[[Any], Mapping[str, Any]]
    latent_shape: Callable[[Any], tuple[int, ...]]
    max_batch: int | None = None
    module: str = "diffusers"
    prompts: Callable[[Mapping[str, Any], int], list[str]] | None = None
    guidance: Literal["batched", "separate", "embedded"] = "batched"
    transformers: tuple[str, ...] = (TRANSFORMER,)
    scale: Callable[[float, int], Mapping[str, Any]] = _guidance_scale

    @property
    def pipeline_class(self) -> Any:
        """The class itself; its module is imported for it, which takes seconds."""
        return getattr(import_module(self.module), self.pipeline)

    @property
    def kind(self) -> str:
        """``image`` or ``video``."""
        return self.adapter.kind

    def calls_per_step(self, guidance: float) -> int:
        """How often a step calls the transformer at this scale."""
        return 2 if self.guidance == "separate" and guidance > 1 else 1


def _size(pipe: Any) -> dict[str, int]:
    """The height and width that the transformer was trained for."""
    size = pipe.transformer.config.sample_size * pipe.vae_scale_factor
    return {"height": size, "width": size}


def _binned(pipe: Any) -> dict[str, Any]:
    # Binning maps the size to a table made for a few trained ones; ours is already the trained one.
    return {**_size(pipe), "use_resolution_binning": False, "clean_caption": False}


def _latte(pipe: Any) -> dict[str, Any]:
    frames = pipe.transformer.config.video_length
    return {**_size(pipe), "video_length": frames, "clean_caption": False}


def _nothing(pipe: Any) -> dict[str, Any]:  # noqa: ARG001 - its sizes are its defaults
    return {}


def _free_size(pipe: Any, space: int, time: int, **defaults: int) -> dict[str, int]:
    """Height and width, multiples of ``space``, and frames, a multiple of ``time`` and one."""
    own = inspect.signature(type(pipe).__call__).parameters
    known: dict[str, int] = {name: own[name].default for name in SIZES} | defaults
    sizes = known | getattr(pipe, "viditq_size", {})
    height, width, frames = (sizes[name] for name in SIZES)
    if height % space or width % space or (frames - 1) % time:
        raise PipelineError(
            f"{type(pipe).__name__} makes no videos of {frames} frames of {height} × {width} "
            f"pixels; give multiples of {space} pixels and {time} frames and one."
        )
    return sizes


def _video_size(pipe: Any) -> dict[str, int]:
    """Of Wan and HunyuanVideo."""
    patch = pipe.transformer.config.patch_size
    patch = patch if isinstance(patch, int) else patch[-1]
    space, time = pipe.vae_scale_factor_spatial * patch, pipe.vae_scale_factor_temporal
    # Wan2.2-TI2V-5B, whose pipeline class has the defaults of its siblings.
    larger = {"height": 704, "width": 1280, "num_frames": 121}
    defaults = larger if pipe.config.get("expand_timesteps") else {}
    return _free_size(pipe, max(16, space), time, **defaults)


def _cogvideox(pipe: Any) -> dict[str, int]:
    config = pipe.transformer.config
    space = pipe.vae_scale_factor_spatial
    size = {"height": config.sample_height * space, "width": config.sample_width * space}
    if config.patch_size_t is not None:  # 1.5, whose configuration has the size of a table
        size = {"height": 768, "width": 1360}
    return {
        **_free_size(
            pipe,
            max(8, space * config.patch_size),
            pipe.vae_scale_factor_temporal,
            **size,
            num_frames=config.sample_frames,
        ),
        "max_sequence_length": config.max_text_seq_length,
    }


def _ltx(pipe: Any) -> dict[str, int]:
    space = pipe.vae_spatial_compression_ratio * pipe.transformer_spatial_patch_size
    time = pipe.vae_temporal_compression_ratio * pipe.transformer_temporal_patch_size
    return _free_size(pipe, max(32, space), time)


_PIXART = adapter_named("PixArtTransformer2DModel")
_LATTE = adapter_named("LatteTransformer3DModel")
_LATTE_CLASS = adapter_named("LatteClassTransformer3DModel")
_STDIT = adapter_named("STDiTTransformer3DModel")
_STDIT3 = adapter_named("STDiT3Transformer3DModel")
_FLUX = adapter_named("FluxTransformer2DModel")
_SD3 = adapter_named("SD3Transformer2DModel")
_SANA = adapter_named("SanaTransformer2DModel")
_FLUX2 = adapter_named("Flux2Transformer2DModel")
_WAN = adapter_named("WanTransformer3DModel")
_QWEN_IMAGE = adapter_named("QwenImageTransformer2DModel")
_COGVIDEOX = adapter_named("CogVideoXTransformer3DModel")
_LTX = adapter_named("LTXVideoTransformer3DModel")
_HUNYUAN_VIDEO = adapter_named("HunyuanVideoTransformer3DModel")
_OPENSORA = "viditq.pipelines.opensora"


def _image_latent(pipe: Any) -> tuple[int, ...]:
    """(C, H, W)."""
    config = pipe.transformer.config
    return config.in_channels, config.sample_size, config.sample_size


def _video_latent(pipe: Any) -> tuple[int, ...]:
    """(C, T, H, W)."""
    channels, *size = _image_latent(pipe)
    return channels, pipe.transformer.config.video_length, *size


def _any_size_latent(pipe: Any) -> tuple[int, ...]:
    """(C, T, H, W)."""
    return pipe.latent_shape()


def _free_latent(pipe: Any) -> tuple[int, ...]:
    """(C, T, H, W), of Wan and HunyuanVideo."""
    height, width, frames = _video_size(pipe).values()
    space, time = pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal
    channels = pipe.transformer.config.in_channels
    return channels, (frames - 1) // time + 1, height // space, width // space


def _cogvideox_latent(pipe: Any) -> tuple[int, ...]:
    """(T, C, H, W), of 1.5 with frames that it takes away again."""
    size, space = _cogvideox(pipe), pipe.vae_scale_factor_spatial
    frames = (size["num_frames"] - 1) // pipe.vae_scale_factor_temporal + 1
    frames += -frames % (pipe.transformer.config.patch_size_t or 1)
    channels = pipe.transformer.config.in_channels
    return frames, channels, size["height"] // space, size["width"] // space


def _ltx_latent(pipe: Any) -> tuple[int, ...]:
    """(tokens, C)."""
    height, width, frames = _ltx(pipe).values()
    space, time = pipe.vae_spatial_compression_ratio, pipe.vae_temporal_compression_ratio
    patch, patch_t = pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size
    tokens = ((frames - 1) // time + 1) // patch_t
    tokens *= (height // space // patch) * (width // space // patch)
    return tokens, pipe.transformer.config.in_channels * patch_t * patch**2


def _classes(config: Mapping[str, Any], num: int) -> list[str]:
    """Numbers of classes, evenly spread."""
    return [str(index * config["num_classes"] // num) for index in range(num)]


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        f.pipeline: f
        for f in (
            Family("PixArtAlphaPipeline", _PIXART, _binned, _image_latent),
            Family("PixArtSigmaPipeline", _PIXART, _binned, _image_latent),
            # Latte cuts the padding off a caption only when it is alone in the batch.
            Family("LattePipeline", _LATTE, _latte, _video_latent, max_batch=1),
            Family(
                "LatteClassPipeline",
                _LATTE_CLASS,
                _nothing,
                _video_latent,
                module="viditq.pipelines.latte_class",
                prompts=_classes,
            ),
            Family("OpenSoraPipeline", _STDIT, _nothing, _video_latent, module=_OPENSORA),
            Family(
                "OpenSora12Pipeline",
                _STDIT3,
                _nothing,
                _any_size_latent,
                module=f"{_OPENSORA}12",
            ),
            Family("FluxPipeline", _FLUX, images.flux, images.patches, guidance="embedded"),
            Family(
                "Flux2Pipeline",
                _FLUX2,
                images.chosen_size,
                images.grid_of_patches,
                guidance="embedded",
            ),
            Family(
                "QwenImagePipeline",
                _QWEN_IMAGE,
                images.chosen_size,
                images.patches,
                guidance="separate",
                scale=images.true_guidance,
            ),
            Family("StableDiffusion3Pipeline", _SD3, _size, _image_latent),
            Family("SanaPipeline", _SANA, _binned, _image_latent),
            Family(
                "WanPipeline",
                _WAN,
                _video_size,
                _free_latent,
                guidance="separate",
                transformers=(TRANSFORMER, "transformer_2"),
            ),
            Family("CogVideoXPipeline", _COGVIDEOX, _cogvideox, _cogvideox_latent),
            Family("LTXPipeline", _LTX, _ltx, _ltx_latent),
            Family(
                "HunyuanVideoPipeline",
                _HUNYUAN_VIDEO,
                _video_size,
                _free_latent,
                guidance="embedded",
            ),
        )
    }
)


def family_named(pipeline: str, transformer: str | None = None) -> Family:
    """The family of a pipeline class; :class:`PipelineError` names what is supported."""
    if transformer is None and pipeline not in FAMILIES:
        raise PipelineError(
            f"{pipeline} has no transformer (a U-Net, perhaps); viditq quantizes diffusion "
            f"transformers: {', '.join(FAMILIES)}."
        )
    if pipeline not in FAMILIES:
        raise PipelineError(f"{pipeline} is not supported; supported are {', '.join(FAMILIES)}.")
    return FAMILIES[pipeline]


def family(pipe: Any) -> Family:
    """The family of a loaded pipeline."""
    transformer = getattr(pipe, "transformer", None)
    names = [type(part).__name__ for part in (pipe, transformer) if part is not None]
    return family_named(*names)


def transformers(pipe: Any) -> dict[str, nn.Module]:
    """The transformers of a loaded pipeline, by component; ``transformer`` is the first."""
    found = {name: getattr(pipe, name, None) for name in family(pipe).transformers}
    return {name: model for name, model in found.items() if model is not None}
