"""Finding and loading pipelines: bundled names, local directories, hub ids; float or quantized.

What a directory holds is judged by its small files first, so that a wrong one is refused in a
moment and with one sentence, before gigabytes are read.
"""

import json
import logging
import math
import textwrap
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from viditq import blocks, checkpoint
from viditq.errors import InputError, PipelineError
from viditq.pipelines.families import SIZES, TRANSFORMER, family_named
from viditq.zoo import catalog

__all__ = ["load", "quiet_libraries", "read_index", "resolve", "resolve_device", "stored_dtype"]

INDEX = "model_index.json"


def resolve(source: str | Path) -> Path:
    """The directory of a pipeline.

    Args:
        source: the name of a bundled pipeline, a directory in diffusers layout, or a hub id
            (``owner/name``), which is downloaded on first use.

    Raises:
        PipelineError: there is no such pipeline.
    """
    if str(source) in catalog.BUNDLED:
        return catalog.bundled_path(str(source))
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists():
        raise PipelineError(f"{path} is a file; a pipeline is a directory in diffusers layout.")
    if isinstance(source, str) and source.count("/") == 1 and not source.startswith((".", "/")):
        return _download(source)
    raise PipelineError(
        f"No pipeline {str(source)!r}: give a bundled name ({', '.join(catalog.BUNDLED)}), a "
        f"directory in diffusers layout, or a hub id like owner/name."
    )


def _download(hub_id: str) -> Path:
    import diffusers

    try:
        # It fetches what the pipeline loads, and nothing else of the repository.
        return Path(diffusers.DiffusionPipeline.download(hub_id))
    except Exception as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:300]
        raise PipelineError(
            f"No directory {hub_id!r} here, and the hub has no pipeline of that name that can be "
            f"reached ({reason})."
        ) from None


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The floating-point type of most numbers in a model's safetensors; ``None`` without any.

    Models in 16 bits may keep some of their tensors in fp32.
    """
    names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    numbers: Counter[torch.dtype] = Counter()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                if (stored := part.get_dtype()) in names:
                    numbers[names[stored]] += math.prod(part.get_shape())
    return max(numbers, key=numbers.__getitem__, default=None)


def read_index(folder: Path) -> dict[str, Any]:
    """``model_index.json``, checked: the pipeline is of a supported family.

    Raises:
        PipelineError: missing, malformed, or a family without adapter.
    """
    path = folder / INDEX
    try:
        index = json.loads(path.read_text("utf-8"))
        names = [index["_class_name"]]
        if TRANSFORMER in index:
            names.append(index[TRANSFORMER][1])
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a class is no name")
    except FileNotFoundError:
        raise PipelineError(
            f"{folder} has no {INDEX}; a pipeline is a directory as save_pretrained writes it."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise PipelineError(f"{path} cannot be read as a pipeline's index ({error}).") from None
    family_named(*names)
    return index


def resolve_device(device: str) -> torch.device:
    """A usable device; :class:`InputError` if this machine does not have it."""
    try:
        resolved = torch.device(device)
    except RuntimeError:
        resolved = None
    if resolved is None or resolved.type not in ("cpu", "cuda"):
        raise InputError(f"No device {device!r}; give cpu or cuda.")
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise InputError("No CUDA device here; run with --device cpu.")
    return resolved


def load(
    source: str | Path,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    fuse: bool | None = None,
) -> Any:
    """Load a float or quantized pipeline, ready to run.

    Args:
        source: see :func:`resolve`.
        device: ``cpu`` or ``cuda``.
        dtype: of everything that is not quantized; scales stay fp32.
        fuse: fuse the blocks of a quantized transformer (:func:`viditq.blocks.fuse_`); ``None``:
            where that is faster.

    Returns:
        A diffusers pipeline.

    Raises:
        PipelineError: there is no such pipeline, it is of an unsupported family, or broken.
        CheckpointError: its quantized transformer is damaged.
    """
    target = resolve_device(device)
    folder = resolve(source)
    index = read_index(folder)
    facts = family_named(index["_class_name"])
    fuse = blocks.is_faster(target) if fuse is None else fuse
    components = {
        name: checkpoint.load(folder / name, dtype=dtype, fuse=fuse)
        for name in facts.transformers
        if checkpoint.is_quantized(folder / name)
    }
    with quiet_libraries():
        try:
            pipe = facts.pipeline_class.from_pretrained(folder, dtype=dtype, **components)
        except Exception as error:
            reason = textwrap.shorten(str(error), 300) or type(error).__name__
            raise PipelineError(
                f"{folder} cannot be loaded as {index['_class_name']} ({reason})."
            ) from error
        pipe.to(target)
    pipe.viditq_size = {name: index[name] for name in SIZES if isinstance(index.get(name), int)}
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without the bars and notices that loading prints for every component."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    loggers = (diffusers_logging, transformers_logging)
    before = [(module.get_verbosity(), module.is_progress_bar_enabled()) for module in loggers]
    for module in loggers:
        module.set_verbosity(logging.ERROR)
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module, (level, with_bars) in zip(loggers, before, strict=True):
            module.set_verbosity(level)
            if with_bars:
                module.enable_progress_bar()
