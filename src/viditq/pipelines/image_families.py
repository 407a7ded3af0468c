"""How pipelines of images that have no trained size are called: FLUX.1 and FLUX.2.

Their transformers work on 2 × 2 latent pixels as one token, and any number of them; the size here
is the pipelines' default. Guidance is an input of the transformers, where they have one at all.
Pictures to start from, adapters for them and true guidance are declined.
"""

from typing import Any

__all__ = ["default_size", "flux", "grid_of_patches", "patches"]

PATCH = 2
"""Latent pixels of a token, in height and width."""


def default_size(pipe: Any) -> dict[str, int]:
    """Height and width, in pixels."""
    size = pipe.default_sample_size * pipe.vae_scale_factor
    return {"height": size, "width": size}


def flux(pipe: Any) -> dict[str, int]:
    """Captions of FLUX.1-schnell, which has no guidance, were half as long in training."""
    length = 512 if pipe.transformer.config.guidance_embeds else 256
    return {**default_size(pipe), "max_sequence_length": length}


def patches(pipe: Any) -> tuple[int, ...]:
    """Noise as tokens, (S, C)."""
    channels, height, width = grid_of_patches(pipe)
    return height * width, channels


def grid_of_patches(pipe: Any) -> tuple[int, ...]:
    """Noise as a grid of tokens, (C, H, W)."""
    side = pipe.default_sample_size // PATCH
    return pipe.transformer.config.in_channels, side, side
