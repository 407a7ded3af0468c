"""How pipelines of images that have no trained size are called: FLUX.1, FLUX.2 and Qwen-Image.

Their transformers work on 2 × 2 latent pixels as one token, and any number of them; pictures are as
large as the pipelines make them by themselves, or as their ``viditq_size`` says. Guidance is an
input of FLUX's transformers, where they have one at all; Qwen-Image makes the branch without prompt
in a call of its own. Pictures to start from, adapters for them and FLUX's true guidance are
declined.
"""

from typing import Any

from viditq.errors import PipelineError

__all__ = ["chosen_size", "flux", "grid_of_patches", "patches", "true_guidance"]

PATCH = 2
"""Latent pixels of a token, in height and width."""


def chosen_size(pipe: Any) -> dict[str, int]:
    """Height and width in pixels, multiples of a token's."""
    default, token = pipe.default_sample_size * pipe.vae_scale_factor, _pixels_of_token(pipe)
    chosen = getattr(pipe, "viditq_size", {})
    sizes = {name: chosen.get(name, default) for name in ("height", "width")}
    if any(size % token for size in sizes.values()):
        raise PipelineError(
            f"{type(pipe).__name__} makes no pictures of {sizes['height']} × {sizes['width']} "
            f"pixels; give multiples of {token}."
        )
    return sizes


def _pixels_of_token(pipe: Any) -> int:
    return PATCH * pipe.vae_scale_factor


def flux(pipe: Any) -> dict[str, int]:
    """Captions of FLUX.1-schnell, which has no guidance, were half as long in training."""
    length = 512 if pipe.transformer.config.guidance_embeds else 256
    return {**chosen_size(pipe), "max_sequence_length": length}


def patches(pipe: Any) -> tuple[int, ...]:
    """Noise as tokens, (S, C)."""
    channels, height, width = grid_of_patches(pipe)
    return height * width, channels


def grid_of_patches(pipe: Any) -> tuple[int, ...]:
    """Noise as a grid of tokens, (C, H, W)."""
    token = _pixels_of_token(pipe)
    height, width = (size // token for size in chosen_size(pipe).values())
    return pipe.transformer.config.in_channels, height, width


def true_guidance(scale: float, num: int) -> dict[str, Any]:
    """Without an unwanted prompt there is no second branch; a blank is the authors' choice."""
    unwanted = {"negative_prompt": [" "] * num} if scale > 1 else {}
    return {"true_cfg_scale": scale, **unwanted}
