"""Recording what a pipeline passes to its transformer along real sampling trajectories.

A pipeline may have several transformers, one for the early steps and one for the late: each has a
set of its own, of the steps that call it, from the same trajectories.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from viditq.calibration import (
    CalibrationInfo,
    CalibrationSet,
    model_fingerprint,
    move,
    trim_captions,
)
from viditq.errors import CalibrationError, InputError
from viditq.pipelines.families import TRANSFORMER, family, transformers
from viditq.pipelines.generate import DEFAULT_GUIDANCE, DEFAULT_STEPS, call
from viditq.progress import Track, quiet

__all__ = ["DEFAULT_KEPT_STEPS", "kept_steps", "own_folder", "record"]

DEFAULT_KEPT_STEPS = 10


def kept_steps(num_steps: int, kept: int) -> tuple[int, ...]:
    """``kept`` step indices spread evenly over the trajectory, its first and last included."""
    if kept >= num_steps:
        return tuple(range(num_steps))
    if kept == 1:
        return (0,)
    return tuple(round(i * (num_steps - 1) / (kept - 1)) for i in range(kept))


def own_folder(folder: Path, transformer: str) -> Path:
    """``folder`` itself for the first transformer of a pipeline, one in it for another."""
    return folder if transformer == TRANSFORMER else folder / transformer


@torch.inference_mode()
def record(
    pipe: Any,
    prompts: Sequence[str],
    folder: str | Path,
    *,
    source: str = "",
    seed: int = 0,
    steps: int = DEFAULT_STEPS,
    kept: int = DEFAULT_KEPT_STEPS,
    guidance: float = DEFAULT_GUIDANCE,
    batch_size: int = 1,
    track: Track = quiet,
) -> CalibrationSet:
    """Record transformer inputs, one trajectory per prompt; goes on where it was interrupted.

    Args:
        pipe: the float pipeline.
        prompts: calibration prompts.
        folder: of the calibration set; those of further transformers are in folders of their names
            in it (:func:`own_folder`).
        source: how the user named the pipeline, for provenance.
        seed: prompt ``i`` starts from the noise of seed ``seed + i``.
        steps: denoising steps of a trajectory.
        kept: how many of them to keep.
        guidance: classifier-free guidance scale; above 1, both branches are recorded.
        batch_size: prompts that share a trajectory's calls. In larger ones than 1, caption tokens
            that are padding for all of them are left out (:func:`trim_captions`).
        track: shows progress, in prompts or groups of them.

    Returns:
        The calibration set, of several transformers that of the first.

    Raises:
        CalibrationError: ``folder`` holds a set with other settings, the pipeline calls its
            transformer less often than it has steps, or a transformer not at all.
    """
    if not prompts or steps < 1 or kept < 1 or batch_size < 1:
        raise InputError(
            f"Calibration needs at least one prompt, one step, one kept step and one prompt at a "
            f"time, not {len(prompts)}, {steps}, {kept} and {batch_size}."
        )
    models = transformers(pipe)
    sets = {
        name: CalibrationSet.create(
            own_folder(Path(folder), name),
            CalibrationInfo(
                source=source,
                model=model_fingerprint(models[name]),
                prompts=tuple(prompts),
                num_steps=steps,
                steps=own,
                guidance=guidance,
                seed=seed,
                calls_per_step=family(pipe).calls_per_step(guidance),
                batch_size=batch_size,
            ),
        )
        for name, own in _steps_of(pipe, tuple(models), steps, kept).items()
    }
    groups = sets[TRANSFORMER].info.groups
    missing = sorted({index for recorded in sets.values() for index in recorded.missing})
    for index in track(missing, "record", len(missing)):
        tape = _Tape(models, {name: recorded.info.steps for name, recorded in sets.items()})
        with tape:
            first, own = seed + index * batch_size, groups[index]
            seeds = range(first, first + len(own))
            call(pipe, own, seeds, steps, guidance, output_type="latent")
        if tape.step + 1 < steps:
            raise CalibrationError(
                f"The pipeline made {tape.step + 1} of {steps} denoising steps; its scheduler does "
                f"not fit the calibration."
            )
        for name, recorded in sets.items():
            if index in recorded.missing:
                calls = tape.calls[name]
                if batch_size > 1:
                    calls = [(step, trim_captions(arguments)) for step, arguments in calls]
                recorded.write_prompt(index, calls)
    return sets[TRANSFORMER]


def _steps_of(
    pipe: Any, names: Sequence[str], num_steps: int, kept: int
) -> dict[str, tuple[int, ...]]:
    """The kept steps of each transformer, of those that call it; at least one."""
    steps = kept_steps(num_steps, kept)
    if len(names) == 1:
        return {names[0]: steps}
    early = _early_steps(pipe, num_steps)
    found = {}
    for name, called in zip(names, (range(early), range(early, num_steps)), strict=True):
        if not called:
            raise CalibrationError(
                f"None of {num_steps} steps calls {name}; calibrate with more steps."
            )
        own = tuple(step for step in steps if step in called)
        found[name] = own or (called[len(called) // 2],)
    return found


def _early_steps(pipe: Any, num_steps: int) -> int:
    """How many steps are of the first of two transformers."""
    scheduler = pipe.scheduler
    scheduler.set_timesteps(num_steps)
    boundary = (pipe.config.boundary_ratio or 0.0) * scheduler.config.num_train_timesteps
    return int((scheduler.timesteps.unique_consecutive() >= boundary).sum())


class _Tape:
    """While entered, keeps the arguments of each transformer at the steps wanted of it.

    A step begins when the timestep changes, whichever transformer is called.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], steps: Mapping[str, Collection[int]]
    ) -> None:
        self._models, self._steps = models, steps
        self._timestep: float | None = None
        self.step = -1
        self.calls: dict[str, list[tuple[int, dict[str, Any]]]] = {name: [] for name in models}

    def __enter__(self) -> "_Tape":
        self._handles = [
            model.register_forward_pre_hook(self._watcher(name, model), with_kwargs=True)
            for name, model in self._models.items()
        ]
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _watcher(self, name: str, model: nn.Module) -> Callable[..., None]:
        signature = inspect.signature(model.forward)

        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
            arguments = dict(signature.bind(*args, **kwargs).arguments)
            timestep = float(torch.as_tensor(arguments["timestep"]).flatten()[0])
            if timestep != self._timestep:
                self._timestep = timestep
                self.step += 1
            if self.step in self._steps[name]:
                self.calls[name].append((self.step, move(arguments, "cpu")))

        return see
