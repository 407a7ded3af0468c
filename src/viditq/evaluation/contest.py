"""Recipes against each other on one pipeline: one calibration, the same seeds, one table.

Every recipe of a lineup is quantized from one shared calibration and sampled at the same seeds as
the float pipeline; then all are compared. Everything lives in one directory, and whatever is there
already is used again, so the command that was stopped goes on:

    run.json           what was asked: pipeline, recipes, settings, code (written first)
    calibration/       recorded inputs and statistics, shared by all recipes
    quantized/NAME/    the pipeline that each recipe made, whole or not there
    comparison/        what :func:`viditq.compare` writes: samples, readings, layers
    contest.json       the rows (standings.Contest), written last

With several processes the calibration and the float samples are made side by side, then one recipe
in each. A recipe's name stands for its content: a directory that another recipe of that name, other
code or another calibration made is refused, or with ``overwrite`` made again.
"""

import functools
import gc
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from viditq import pipelines
from viditq.calibration import observe, observe_gradients
from viditq.errors import InputError, PlanError, ViditqError
from viditq.evaluation import metrics
from viditq.evaluation.compare import (
    FLOAT_BF16,
    compare,
    float_sources,
    make_samples,
    plan_samples,
)
from viditq.evaluation.lineup import Lineup
from viditq.evaluation.measure import FLOAT, Reader
from viditq.evaluation.results import Comparison
from viditq.evaluation.samples import (
    fingerprint,
    fingerprint_directory,
    fingerprint_package,
)
from viditq.evaluation.sampling import Settings, Source
from viditq.evaluation.standings import CONTEST_FILE, Contest
from viditq.evaluation.workers import count_workers, crew
from viditq.files import check_replaceable, write_atomic
from viditq.progress import Track, quiet
from viditq.prompts import hash_prompts
from viditq.recipe import Recipe

__all__ = ["load_comparison", "run_contest"]

RUN_FILE = "run.json"


@dataclass(frozen=True)
class _Stage:
    """What the jobs of one contest share; goes to other processes."""

    float_source: str
    float_: Source
    out: Path
    settings: Settings
    calibration_prompts: Sequence[str]

    @property
    def comparison(self) -> Path:
        return self.out / "comparison"

    @property
    def calibration(self) -> Path:
        return self.out / "calibration"

    def quantized(self, name: str) -> Path:
        return self.out / "quantized" / name


def run_contest(
    float_source: str | Path,
    lineup: Lineup,
    prompts: Sequence[str] | None = None,
    *,
    num: int = 128,
    out: str | Path,
    calibration_prompts: Sequence[str] | None = None,
    seed: int = 0,
    steps: int = 20,
    guidance: float = 4.5,
    device: str = "cpu",
    batch_size: int = 8,
    gpus: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    command: str | None = None,
    judge: Reader | None = None,
    track: Track = quiet,
    tell: Callable[[str], None] = lambda line: None,  # noqa: ARG005
) -> Contest:
    """Quantize with every recipe of ``lineup``, sample, compare, and write ``out``.

    Args:
        float_source: Bundled name, directory in diffusers layout, or hub id.
        lineup: The recipes.
        prompts, num, seed, batch_size: As for :func:`viditq.compare`.
        out: Directory to work in; new, empty, or of an earlier call. One that is not finished goes
            on; one that is finished and was asked for otherwise needs ``overwrite``.
        calibration_prompts: By default those that ``quantize`` takes.
        steps, guidance: Of the samples and of the calibration.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        gpus: GPUs to use, with ``cuda``; by default all.
        workers: Processes, on the CPU.
        overwrite: Replace what an earlier call with other recipes or settings left; what still
            fits is used again.
        command: The command line, for the record.
        judge: Reads samples and gives features; None takes the bundled one.
        track: Shows progress.
        tell: Gets a line when a recipe is done.

    Raises one of viditq's errors before anything is made when the arguments do not fit.
    """
    out = Path(out).resolve()
    sources = float_sources(float_source)
    pipelines.read_index(sources[FLOAT].path)
    pipelines.resolve_device(device)
    count = count_workers(device, gpus, workers)
    for recipe in lineup.recipes:
        _check_name(recipe.name)
    settings = plan_samples(
        float_source,
        prompts,
        num=num,
        seed=seed,
        steps=steps,
        guidance=guidance,
        device=device,
        batch_size=batch_size,
    )
    if calibration_prompts is None:
        calibration_prompts = pipelines.calibration_prompts(float_source)
    stage = _Stage(str(float_source), sources[FLOAT], out, settings, tuple(calibration_prompts))
    request = _request(stage, lineup)
    if _is_done(out, request) and not overwrite:
        return Contest.load(out)
    _begin(stage, request, overwrite)

    with crew(count, device) as run_all:
        common = {name: functools.partial(_sample, stage, name, sources[name]) for name in sources}
        common["calibration"] = functools.partial(_calibrate, stage, lineup.recipes)
        for _ in run_all(common, track):
            pass
        jobs = {recipe.name: functools.partial(_enter, stage, recipe) for recipe in lineup.recipes}
        for number, (name, psnr_db) in enumerate(run_all(jobs, track), 1):
            tell(f"{name}: {psnr_db:.1f} dB to float ({number} of {len(jobs)})")
    comparison = compare(
        float_source,
        [stage.quantized(recipe.name) for recipe in lineup.recipes],
        settings.prompts,
        num=num,
        out=stage.comparison,
        seed=seed,
        steps=steps,
        guidance=guidance,
        device=device,
        batch_size=batch_size,
        overwrite=True,
        command=command,
        judge=judge,
        track=track,
    )
    contest = Contest.of(lineup, comparison)
    contest.save(out)
    return contest


def load_comparison(out: str | Path) -> Comparison:
    """The comparison that a finished contest in ``out`` rests on, with its samples."""
    return Comparison.load(Path(out) / "comparison")


def _check_name(name: str) -> None:
    if name in (FLOAT, FLOAT_BF16) or Path(name).name != name or name.startswith("."):
        raise PlanError(f"A recipe cannot be called {name!r}, since a directory is called so.")


def _request(stage: _Stage, lineup: Lineup) -> dict[str, Any]:
    """What ``run.json`` says; ``foundation`` is what all quantized directories rest on."""
    settings = stage.settings
    return {
        "foundation": {
            "float pipeline": [stage.float_source, fingerprint_directory(stage.float_.path)],
            "code": fingerprint(package=fingerprint_package(), torch=torch.__version__),
            "device": settings.device,
            "calibration": {
                "prompts": hash_prompts(stage.calibration_prompts),
                "steps": settings.steps,
                "guidance": settings.guidance,
            },
        },
        "recipes": {recipe.name: recipe.model_dump(mode="json") for recipe in lineup.recipes},
        "contest": [lineup.kind, lineup.bits, [recipe.name for recipe in lineup.recipes]],
        "samples": {
            "num": len(settings.seeds),
            "seed": settings.seeds[0],
            "prompts": hash_prompts(settings.prompts),
            "batch_size": settings.batch_size,
        },
    }


def _earlier(out: Path) -> dict[str, Any] | None:
    file = out / RUN_FILE
    if not file.exists():
        return None
    try:
        request = json.loads(file.read_text("utf-8"))
        return {key: request[key] for key in ("foundation", "recipes", "contest", "samples")}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{file} is damaged; name a new directory.") from None


def _is_done(out: Path, request: dict[str, Any]) -> bool:
    """Whether ``out`` holds the outcome of just this request."""
    earlier = _earlier(out)
    if earlier is None or not (out / CONTEST_FILE).exists():
        return False
    shared = {name: earlier["recipes"].get(name) for name in request["recipes"]}
    return {**earlier, "recipes": shared} == request


def _begin(stage: _Stage, request: dict[str, Any], overwrite: bool) -> None:
    """Check what an earlier call left, remove what does not fit, and write the request.

    ``run.json`` always names the recipe that made a quantized directory: what is removed goes
    before the file is written, what is made comes after.
    """
    out = stage.out
    earlier = _earlier(out)
    finished = (out / CONTEST_FILE).exists()
    check_replaceable(out, marker=RUN_FILE, overwrite=overwrite or not finished)
    kept: dict[str, Any] = {}
    if earlier is not None:
        misfits = _misfits(stage, earlier, request)
        if misfits and not overwrite:
            raise InputError(
                f"{misfits[0]}; make it again with --overwrite or name a new directory."
            )
        if earlier["foundation"] != request["foundation"]:
            for folder in (stage.calibration, out / "quantized"):
                shutil.rmtree(folder, ignore_errors=True)
        for name, recipe in earlier["recipes"].items():
            if request["recipes"].get(name, recipe) != recipe:
                shutil.rmtree(stage.quantized(name), ignore_errors=True)
            elif stage.quantized(name).exists():
                kept[name] = recipe
        (out / CONTEST_FILE).unlink(missing_ok=True)
        for half in (*(out / "quantized").glob(".*.partial"), *out.glob(".comparison.*.old")):
            shutil.rmtree(half)  # what a killed process had no time to remove
    request = {**request, "recipes": kept | request["recipes"]}
    write_atomic(out / RUN_FILE, json.dumps(request, indent=1))


def _misfits(stage: _Stage, earlier: dict[str, Any], request: dict[str, Any]) -> list[str]:
    """What of an earlier call cannot be used by this one, each as the beginning of a sentence."""
    foundation, before = request["foundation"], earlier["foundation"]
    changed = [key for key in foundation if foundation[key] != before.get(key)]
    if changed:
        return [f"{stage.out} was begun with another {' and another '.join(changed)}"]
    return [
        f"{stage.quantized(name)} was made by another recipe of that name"
        for name, recipe in request["recipes"].items()
        if earlier["recipes"].get(name, recipe) != recipe and stage.quantized(name).exists()
    ]


def _sample(stage: _Stage, name: str, source: Source, track: Track) -> None:
    make_samples(stage.comparison, name, source, stage.settings, track)


def _calibrate(stage: _Stage, recipes: Sequence[Recipe], track: Track) -> None:
    """Record and observe what every ``quantize`` will find in the folder."""
    settings = stage.settings
    pipe = pipelines.load(stage.float_source, settings.device)
    recorded = pipelines.record(
        pipe,
        stage.calibration_prompts,
        stage.calibration / "recorded",
        source=stage.float_source,
        steps=settings.steps,
        guidance=settings.guidance,
        track=track,
    )
    model, folder = pipe.transformer, stage.calibration
    observe(model, recorded, folder / "stats", track=track)
    if any(recipe.needs_gradients for recipe in recipes):
        observe_gradients(model, recorded, folder / "gradients", track=track)


def _enter(stage: _Stage, recipe: Recipe, track: Track) -> float:
    """Quantize with one recipe and sample; returns its mean PSNR to float in dB."""
    out, settings = stage.quantized(recipe.name), stage.settings
    if not out.exists():
        try:
            pipelines.quantize(
                stage.float_source,
                out,
                preset=recipe,
                prompts=stage.calibration_prompts,
                device=settings.device,
                steps=settings.steps,
                guidance=settings.guidance,
                calibration=stage.calibration,
                track=track,
            )
        except ViditqError as error:
            raise type(error)(f"{recipe.name}: {error}") from None
        gc.collect()  # the pipeline, before the next one is loaded
    make = functools.partial(make_samples, stage.comparison, settings=settings, track=track)
    made = make(recipe.name, Source(out))
    reference = make(FLOAT, stage.float_)
    values = [metrics.psnr(made.read(i), reference.read(i)) for i in range(len(made))]
    return sum(values) / len(values)
