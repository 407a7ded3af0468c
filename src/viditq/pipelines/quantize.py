"""The whole way from a float pipeline to a quantized one on disk.

record → observe → plan → quantize → save; the three in the middle, :mod:`viditq.streaming` does for
as many layers at a time as fit into memory. Each stage leaves files beside the output from which an
interrupted run goes on; the output directory itself appears whole or not at all, and is a complete
diffusers pipeline: everything but the transformer is copied as it is. Of several transformers each
is quantized for itself, from the steps that call it. A recipe that refines has more trajectories
recorded, in batches, and ends with :mod:`viditq.refining`.
"""

import copy
import gc
import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import viditq
from viditq import checkpoint
from viditq.calibration import CalibrationInfo, CalibrationSet, move
from viditq.checkpoint import Provenance
from viditq.convert import check_finite
from viditq.diagnostics import LayerDiagnostics, sqnr_db
from viditq.errors import CalibrationError, PipelineError
from viditq.files import atomic_directory, check_replaceable
from viditq.pipelines.families import TRANSFORMER, family, family_named, transformers
from viditq.pipelines.generate import DEFAULT_GUIDANCE, DEFAULT_STEPS
from viditq.pipelines.record import DEFAULT_KEPT_STEPS, own_folder, record
from viditq.pipelines.sources import (
    INDEX,
    load,
    read_index,
    resolve,
    resolve_device,
    stored_dtype,
    stored_numbers,
)
from viditq.plan import Plan
from viditq.progress import Track, quiet
from viditq.prompts import read_prompts
from viditq.recipe import Recipe, Refine, load_recipe
from viditq.refining import check_memory, refine_
from viditq.streaming import quantize_transformer_
from viditq.zoo import catalog

__all__ = ["calibration_prompts", "quantize"]

MARKER = f"{TRANSFORMER}/{checkpoint.LAYERS}"
"""What only an output of :func:`quantize` has: a float pipeline is never replaced."""

FP32_NUMBERS = 1 << 32
"""A transformer with more numbers is calibrated in bf16 on a GPU, where it is 8 GiB and not 16."""

DEFAULT_PROMPTS = 16
LESSON_SEED = 1 << 20
"""Seeds of samples to refine with begin so far from those of the calibration."""
LESSON_BATCH = 32
"""How many of them are recorded together, unless the pipeline makes fewer."""

MEASURED_CALLS = 8
"""Recorded calls on which the finished transformer is compared with the float one."""


def quantize(
    source: str | Path,
    out: str | Path,
    *,
    preset: str | Path | Recipe = "w8a8",
    prompts: Sequence[str] | None = None,
    device: str = "cpu",
    seed: int = 0,
    steps: int = DEFAULT_STEPS,
    kept: int = DEFAULT_KEPT_STEPS,
    guidance: float = DEFAULT_GUIDANCE,
    calibration: str | Path | None = None,
    overwrite: bool = False,
    track: Track = quiet,
) -> Path:
    """Quantize a pipeline and write it as a directory of its own.

    Args:
        source: bundled name, directory in diffusers layout, or hub id.
        out: directory to write; must be new or empty, or an earlier output with ``overwrite``.
        preset: a recipe, its name (:func:`viditq.load_recipe`), or a TOML file.
        prompts: for calibration; by default some that come with viditq.
        device: ``cpu`` or ``cuda``.
        seed: of the calibration noise.
        steps: denoising steps of a calibration trajectory.
        kept: how many of them are used.
        guidance: classifier-free guidance scale during calibration.
        calibration: folder to keep (and find again) recorded inputs and statistics in; by default
            one beside ``out`` that is removed when all is done.
        overwrite: replace an earlier output.
        track: shows progress.

    Returns:
        ``out``.

    Raises:
        ViditqError: one of its kinds, with a sentence that says what to do; nothing is written.
    """
    out = Path(out)
    check_replaceable(out, marker=MARKER, overwrite=overwrite)
    recipe = preset if isinstance(preset, Recipe) else load_recipe(preset)
    folder = resolve(source)
    index = read_index(folder)
    parts = family_named(index["_class_name"]).transformers
    if any(checkpoint.is_quantized(folder / name) for name in parts):
        raise PipelineError(f"{source} is quantized already; quantize the float pipeline.")
    beside = out.resolve()
    rounding = beside.with_name(f"{beside.name}.calibration")
    work, lessons = Path(calibration or rounding), rounding / "lessons"
    given = calibration_prompts(source) if prompts is None else prompts

    def recorded_models() -> dict[str, nn.Module]:
        # The text encoders go with the pipeline when this returns.
        pipe = load(folder, device, calibration_dtype(folder, parts, device))
        models = transformers(pipe)
        for model in models.values():
            check_finite(model)
        record(
            pipe,
            given,
            work / "recorded",
            source=str(source),
            seed=seed,
            steps=steps,
            kept=kept,
            guidance=guidance,
            track=track,
        )
        if recipe.refine is not None:
            for model in models.values():
                check_memory(model, resolve_device(device))
            most = family(pipe).max_batch or LESSON_BATCH
            batch_size = min(recipe.refine.batch, recipe.refine.samples, LESSON_BATCH, most)
            record(
                pipe,
                _lesson_prompts(source, given, recipe.refine),
                lessons,
                source=str(source),
                seed=seed + LESSON_SEED,
                steps=steps,
                kept=steps,
                guidance=guidance,
                batch_size=batch_size,
                track=track,
            )
        return models

    try:
        models = recorded_models()
    except CalibrationError:
        if calibration or not (work / "recorded").exists():
            raise
        # What an earlier run with other settings left beside the output is ours to replace.
        shutil.rmtree(work)
        shutil.rmtree(lessons, ignore_errors=True)
        models = recorded_models()
    gc.collect()
    made = {}
    for name, model in models.items():
        for other in models.values():
            other.to(resolve_device(device) if other is model else "cpu")
        made[name] = _quantized(
            model,
            recipe,
            CalibrationSet(own_folder(work / "recorded", name)),
            own_folder(rounding, name),
            statistics=own_folder(Path(calibration), name) if calibration else None,
            lessons=own_folder(lessons, name),
            track=track,
        )
    _write(folder, index, out, made, str(source), overwrite)
    shutil.rmtree(rounding)  # which holds the calibration too, unless it is to be kept elsewhere
    return out


def _lesson_prompts(source: str | Path, given: Sequence[str], settings: Refine) -> list[str]:
    """One for each sample to refine with: of a bundled pipeline as many as there are, else those
    that it is calibrated with again and again, each time with another seed."""
    if str(source) in catalog.BUNDLED:
        given = catalog.calibration_prompts(
            str(source), min(settings.samples, catalog.MOST_PROMPTS)
        )
    return list(islice(cycle(given), settings.samples))


def calibration_dtype(folder: Path, parts: Iterable[str], device: str) -> torch.dtype:
    """What a float pipeline is loaded in: fp32, unless that were too much for a GPU."""
    largest = max(stored_numbers(folder / name).total() for name in parts)
    return torch.bfloat16 if device.startswith("cuda") and largest > FP32_NUMBERS else torch.float32


def calibration_prompts(source: str | Path, num: int = DEFAULT_PROMPTS) -> list[str]:
    """Prompts to calibrate ``source`` with: its own if it is bundled, else a general list.

    A pipeline that makes classes gets some of its classes.

    Raises:
        PipelineError: there is no such pipeline.
    """
    if str(source) in catalog.BUNDLED:
        return catalog.calibration_prompts(str(source), num)
    folder = resolve(source)
    if own := family_named(read_index(folder)["_class_name"]).prompts:
        config = json.loads((folder / TRANSFORMER / checkpoint.CONFIG).read_text("utf-8"))
        return own(config, num)
    return read_prompts(Path(__file__).with_name("prompts.txt"))[:num]


@dataclass(frozen=True)
class _Quantized:
    """A transformer and what its checkpoint says of it."""

    model: nn.Module
    plan: Plan
    diagnostics: Mapping[str, LayerDiagnostics]
    recorded: CalibrationInfo
    measured: dict[str, float]

    def provenance(self, source: str) -> Provenance:
        """It was quantized as a part of the pipeline that was called ``source``."""
        info = self.recorded
        return Provenance(
            base_model=source,
            base_fingerprint=info.model,
            prompts_sha256=info.prompts_sha256,
            num_prompts=len(info.prompts),
            num_steps=info.num_steps,
            steps=info.steps,
            guidance=info.guidance,
            seed=info.seed,
            versions=_versions(),
            measured=self.measured,
        )


def _quantized(
    model: nn.Module,
    recipe: Recipe,
    recorded: CalibrationSet,
    rounding: Path,
    *,
    statistics: Path | None,
    lessons: Path,
    track: Track,
) -> _Quantized:
    """``model``, quantized in place, and refined if the recipe says so."""
    reference = _outputs(model, recorded, track)
    float_model = copy.deepcopy(model) if recipe.refine is not None else None
    plan, diagnostics = quantize_transformer_(
        model, recipe, recorded, rounding, statistics=statistics, track=track
    )
    refined = {}
    if recipe.refine is not None and float_model is not None:
        gained = refine_(
            model, float_model, CalibrationSet(lessons), recipe.refine, rounding, track=track
        )
        refined = {"refining_gain_db": round(gained, 3)}
        del float_model
    measured = refined | _measure(reference, _outputs(model, recorded, track), diagnostics)
    return _Quantized(model, plan, diagnostics, recorded.info, measured)


def _outputs(model: nn.Module, recorded: CalibrationSet, track: Track) -> list[Tensor]:
    """The transformer's output on some recorded calls, spread over the set."""
    device = next(model.parameters()).device
    every = max(1, len(recorded) // MEASURED_CALLS)
    calls = islice(recorded, 0, None, every)
    outputs = []
    with torch.inference_mode():
        for call in track(calls, "measure", math.ceil(len(recorded) / every)):
            arguments = {**move(call.arguments, device), "return_dict": False}
            outputs.append(model(**arguments)[0].float().cpu())
    return outputs


def _measure(
    reference: list[Tensor], outputs: list[Tensor], layers: Mapping[str, LayerDiagnostics]
) -> dict[str, float]:
    denoiser = sqnr_db(
        torch.cat([o.flatten() for o in outputs]), torch.cat([r.flatten() for r in reference])
    )
    by_layer = [d.sqnr_db for d in layers.values() if d.sqnr_db is not None]
    measured = {"denoiser_sqnr_db": denoiser}
    if by_layer:
        measured["layer_sqnr_db"] = sum(by_layer) / len(by_layer)
    return {name: round(value, 3) for name, value in measured.items() if value is not None}


def _versions() -> dict[str, str]:
    names = ("torch", "diffusers", "transformers")
    return {"viditq": viditq.__version__, **{name: metadata.version(name) for name in names}}


def _write(
    folder: Path,
    index: Mapping[str, Any],
    out: Path,
    made: Mapping[str, _Quantized],
    source: str,
    overwrite: bool,
) -> None:
    """The float pipeline's directory with quantized transformers, whole or not at all."""
    with atomic_directory(out, marker=MARKER, overwrite=overwrite) as part:
        shutil.copy2(folder / INDEX, part / INDEX)
        for name in index:
            if (folder / name).is_dir() and name not in made:
                shutil.copytree(folder / name, part / name)
        for name, quantized in made.items():
            checkpoint.save(
                quantized.model,
                part / name,
                quantized.plan,
                diagnostics=quantized.diagnostics,
                provenance=quantized.provenance(source),
                dtype=stored_dtype(folder / name),
            )
