"""Making the samples of a comparison: one pipeline in memory at a time, nothing made twice."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from viditq import pipelines
from viditq.evaluation.samples import (
    SampleStore,
    fingerprint,
    fingerprint_directory,
    fingerprint_package,
)
from viditq.graphs import capture_
from viditq.pipelines import transformers
from viditq.progress import Track, quiet

__all__ = ["Settings", "Source", "sample"]

SMALL = 1 << 30
"""Parameters of a transformer whose kernels take a GPU less time than Python takes to launch."""


@dataclass(frozen=True)
class Source:
    """A pipeline on disk and the precision that its float parts run in."""

    path: Path
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Settings:
    """What every pipeline of a comparison shares: sample ``i`` has prompt ``i`` and seed ``i``."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    steps: int
    guidance: float
    device: str
    batch_size: int


def sample(
    source: Source,
    folder: Path,
    settings: Settings,
    *,
    earlier: Path | None = None,
    track: Track = quiet,
) -> SampleStore:
    """Fill ``folder`` with all samples of one pipeline and return their store.

    Samples that are there already, or in ``earlier``, and were made in the same way are kept.
    Those missing are made in the same whole batches as in an undisturbed run.
    """
    store = SampleStore(folder, _fingerprints(source, settings))
    if earlier is not None:
        store.adopt(earlier)
    batches = [
        range(start, min(start + settings.batch_size, len(store)))
        for start in range(0, len(store), settings.batch_size)
    ]
    missing = [batch for batch in batches if not all(store.has(index) for index in batch)]
    if not missing:
        return store
    pipe = pipelines.load(source.path, device=settings.device, dtype=source.dtype)
    _replay_(pipe)
    for batch in track(missing, f"sample {folder.name}", len(missing)):
        with full_fp32():
            samples = pipelines.generate(
                pipe,
                [settings.prompts[index] for index in batch],
                [settings.seeds[index] for index in batch],
                steps=settings.steps,
                guidance=settings.guidance,
                batch_size=settings.batch_size,
            )
        for index, made in zip(batch, samples, strict=True):
            store.write(index, made)
    del pipe
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return store


def _replay_(pipe: Any) -> None:
    """Let small transformers on a GPU replay the kernels of a step, which Python would launch too
    slowly."""
    for transformer in transformers(pipe).values():
        first, *rest = transformer.parameters()
        if first.is_cuda and sum(p.numel() for p in (first, *rest)) < SMALL:
            capture_(transformer)


@contextmanager
def full_fp32() -> Iterator[None]:
    """Without TF32, which torch takes for convolutions on CUDA: the reference must be fp32."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def _fingerprints(source: Source, settings: Settings) -> tuple[str, ...]:
    shared = fingerprint(
        source=fingerprint_directory(source.path),
        dtype=str(source.dtype),
        package=fingerprint_package(),
        torch=torch.__version__,
        steps=settings.steps,
        guidance=settings.guidance,
        device=settings.device,
        batch_size=settings.batch_size,
    )
    pairs = zip(settings.prompts, settings.seeds, strict=True)
    return tuple(fingerprint(shared=shared, prompt=prompt, seed=seed) for prompt, seed in pairs)
