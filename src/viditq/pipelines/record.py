"""Recording what a pipeline passes to its transformer along real sampling trajectories."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from viditq.calibration import CalibrationInfo, CalibrationSet, model_fingerprint
from viditq.errors import CalibrationError, InputError
from viditq.pipelines.generate import DEFAULT_GUIDANCE, DEFAULT_STEPS, call
from viditq.progress import Track, quiet

__all__ = ["DEFAULT_KEPT_STEPS", "kept_steps", "record"]

DEFAULT_KEPT_STEPS = 10


def kept_steps(num_steps: int, kept: int) -> tuple[int, ...]:
    """``kept`` step indices spread evenly over the trajectory, its first and last included."""
    if kept >= num_steps:
        return tuple(range(num_steps))
    if kept == 1:
        return (0,)
    return tuple(round(i * (num_steps - 1) / (kept - 1)) for i in range(kept))


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
    track: Track = quiet,
) -> CalibrationSet:
    """Record transformer inputs, one trajectory per prompt; goes on where it was interrupted.

    Args:
        pipe: the float pipeline.
        prompts: calibration prompts.
        folder: of the calibration set.
        source: how the user named the pipeline, for provenance.
        seed: prompt ``i`` starts from the noise of seed ``seed + i``.
        steps: denoising steps of a trajectory.
        kept: how many of them to keep.
        guidance: classifier-free guidance scale; above 1, both branches are recorded.
        track: shows progress, in prompts.

    Raises:
        CalibrationError: ``folder`` holds a set with other settings, or the pipeline calls its
            transformer less often than it has steps.
    """
    if not prompts or steps < 1 or kept < 1:
        raise InputError(
            f"Calibration needs at least one prompt, one step and one kept step, not "
            f"{len(prompts)}, {steps} and {kept}."
        )
    info = CalibrationInfo(
        source=source,
        model=model_fingerprint(pipe.transformer),
        prompts=tuple(prompts),
        num_steps=steps,
        steps=kept_steps(steps, kept),
        guidance=guidance,
        seed=seed,
    )
    recorded = CalibrationSet.create(folder, info)
    missing = recorded.missing
    for index in track(missing, "record", len(missing)):
        tape = _Tape(pipe.transformer, info.steps)
        with tape:
            call(pipe, [prompts[index]], [seed + index], steps, guidance, output_type="latent")
        if {step for step, _ in tape.calls} != set(info.steps):
            raise CalibrationError(
                f"The pipeline made {tape.step + 1} of {steps} denoising steps; its scheduler does "
                f"not fit the calibration."
            )
        recorded.write_prompt(index, tape.calls)
    return recorded


class _Tape:
    """While entered, keeps the transformer's arguments at the wanted steps.

    A step begins when the timestep changes. The supported pipelines batch the guidance branches, so
    a step is one call.
    """

    def __init__(self, transformer: nn.Module, steps: Sequence[int]) -> None:
        self._transformer, self._steps = transformer, frozenset(steps)
        self._signature = inspect.signature(transformer.forward)
        self._timestep: float | None = None
        self.step = -1
        self.calls: list[tuple[int, dict[str, Any]]] = []

    def __enter__(self) -> "_Tape":
        self._handle = self._transformer.register_forward_pre_hook(self._see, with_kwargs=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self._handle.remove()

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        arguments = dict(self._signature.bind(*args, **kwargs).arguments)
        timestep = float(torch.as_tensor(arguments["timestep"]).flatten()[0])
        if timestep != self._timestep:
            self._timestep = timestep
            self.step += 1
        if self.step in self._steps:
            on_cpu = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in arguments.items()}
            self.calls.append((self.step, on_cpu))
