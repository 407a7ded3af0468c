"""Tiny random pipelines of images, with a text encoder of each kind that they have.

Pipelines that have no trained size make pictures of ``default_sample_size`` latent pixels, which no
file keeps: :func:`small` makes it few.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
from tokenizers import processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

import tiny

__all__ = ["PIPELINES", "small"]

LATENT_SIDE = 8
CAPTION_TOKENS = 16


def small(monkeypatch: Any) -> None:
    """Until the test ends, pipelines without a trained size have :data:`LATENT_SIDE`."""
    for name in ("FluxPipeline",):
        monkeypatch.setattr(getattr(diffusers, name), "__init__", _with_side(name))


def _with_side(name: str) -> Callable[..., None]:
    stock = getattr(diffusers, name).__init__

    @wraps(stock)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        self.default_sample_size = LATENT_SIDE

    return init


def clip_tokenizer() -> PreTrainedTokenizerFast:
    """Ends a text, which is where CLIP's summary of it is read."""
    made = tiny.tokenizer()
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", made.eos_token_id)]
    )
    made.model_max_length = CAPTION_TOKENS
    return made


def clip_config(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=32,
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CAPTION_TOKENS,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )


def autoencoder(channels: int) -> AutoencoderKL:
    """Half the size in latents."""
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        shift_factor=0.1,
    )


def flux(guidance: bool = True) -> FluxPipeline:
    """FLUX.1-dev; without guidance, FLUX.1-schnell."""
    torch.manual_seed(0)
    config = tiny.flux_config(layers=1, single_layers=1) | {"guidance_embeds": guidance}
    return FluxPipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=guidance),
        autoencoder(config["in_channels"] // 4),
        CLIPTextModel(clip_config(config["pooled_projection_dim"])),
        clip_tokenizer(),
        tiny.text_encoder(config["joint_attention_dim"]),
        tiny.tokenizer(),
        diffusers.FluxTransformer2DModel(**config),
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    "flux": flux,
    "flux, schnell": lambda: flux(guidance=False),
}

WITHOUT_GUIDANCE = ("flux, schnell",)
"""Those whose samples guidance does not change."""

BATCHED_BRANCHES: tuple[str, ...] = ()
"""Those that run both guidance branches in one call."""

IMAGE, TEXT = 64 * 64, 512
FLUX_SHAPES = {
    (IMAGE, 32, 32): 4,
    (TEXT, 32, 32): 4,
    (IMAGE, 128, 32): 1,
    (IMAGE, 32, 128): 1,
    (TEXT, 128, 32): 1,
    (TEXT, 32, 128): 1,
    (IMAGE + TEXT, 128, 32): 1,
    (IMAGE + TEXT, 32, 32): 3,
    (IMAGE + TEXT, 32, 160): 1,
}
SHAPES: dict[str, dict[tuple[int, int, int], int]] = {"flux": FLUX_SHAPES}
"""(M, N, K) of a call at the default size, and how many layers have it."""


def call_arguments(name: str, guidance: float) -> dict[str, Any]:
    """What a call of the stock pipeline needs beside prompt, steps and noise."""
    shorter = {"max_sequence_length": 256} if name == "flux, schnell" else {}
    return {"guidance_scale": guidance, **shorter}
