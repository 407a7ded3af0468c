"""Samples from a pipeline, one random generator per sample.

The noise of a sample depends on its seed alone, not on the batch it is made in, nor on the device
and precision it is computed in: a generator asked for bf16 may give other numbers than for fp32.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from viditq.errors import InputError
from viditq.pipelines.families import family
from viditq.progress import Track, quiet

__all__ = ["DEFAULT_GUIDANCE", "DEFAULT_STEPS", "generate"]

DEFAULT_STEPS = 20
DEFAULT_GUIDANCE = 4.5


@torch.inference_mode()
def generate(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = DEFAULT_STEPS,
    guidance: float = DEFAULT_GUIDANCE,
    batch_size: int = 8,
    track: Track = quiet,
) -> Tensor:
    """Make one sample per prompt.

    Args:
        pipe: a pipeline as :func:`viditq.pipelines.load` returns it.
        prompts: texts.
        seeds: one per prompt.
        steps: denoising steps.
        guidance: guidance scale, classifier-free or, if the transformer takes one, its input.
        batch_size: prompts per call; less where a family's samples would depend on it.
        track: shows progress, in samples.

    Returns:
        Images (B, H, W, 3) or videos (B, T, H, W, 3), fp32 in [0, 1], on the CPU.
    """
    if len(prompts) != len(seeds) or not prompts:
        raise InputError(f"Give one seed per prompt: {len(prompts)} prompts, {len(seeds)} seeds.")
    if steps < 1 or batch_size < 1:
        raise InputError(f"steps and batch_size must be at least 1, not {steps} and {batch_size}.")
    facts = family(pipe)
    batch_size = min(batch_size, facts.max_batch or batch_size)
    starts = range(0, len(prompts), batch_size)
    samples = []
    for start in track(starts, "generate", len(starts)):
        chosen = slice(start, start + batch_size)
        output = call(pipe, prompts[chosen], seeds[chosen], steps, guidance, output_type="pt")
        frames = output.images if facts.kind == "image" else output.frames
        samples.append(frames.movedim(-3, -1).float().cpu())
    return torch.cat(samples).clamp(0, 1)


def call(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    output_type: str,
) -> Any:
    """One call of the pipeline with its family's arguments."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    facts = family(pipe)
    shape = facts.latent_shape(pipe)
    noise = torch.stack([torch.randn(shape, generator=each) for each in generators])
    return pipe(
        prompt=list(prompts),
        num_inference_steps=steps,
        generator=generators,
        latents=noise.to(pipe.transformer.dtype),
        output_type=output_type,
        **facts.scale(guidance, len(prompts)),
        **facts.arguments(pipe),
    )
