"""How the activations of a float pipeline vary along its own sampling trajectories.

``analyze`` records the transformer's inputs for a few prompts at every step, runs the transformer
on them with a hook on each input of the block linears, and writes ``out``:

    out/variation.json     the numbers, all layers and medians by role (:class:`Analysis`)
    out/summary.png        all layers, the four levels side by side
    out/layer-ROLE.png     the four levels of one layer of each role, the most uneven one
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from viditq import pipelines
from viditq.calibration import CalibrationSet, move
from viditq.evaluation import plots, provenance
from viditq.evaluation.variation import LayerVariation, VariationHook
from viditq.files import atomic_directory, write_atomic
from viditq.models import adapter_for
from viditq.progress import Track, quiet
from viditq.prompts import hash_prompts

__all__ = ["LEVELS", "VARIATION_FILE", "Analysis", "analyze"]

VARIATION_FILE = "variation.json"
LEVELS = ("token", "condition", "timestep", "channel")


class Analysis(BaseModel):
    """The variation of every input of the block linears, and where it was measured.

    Attributes:
        pipeline: As it was named.
        layers: Layer name → its variation. Layers that read the same input stand once, under the
            first of them.
        roles: Role → level → median over its layers (levels as in ``LEVELS``, and
            ``channel_stability``, ``incoherence``).
        created, commit, versions, hardware, prompts_hash, num, seed, steps, guidance: provenance.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pipeline: str
    layers: dict[str, LayerVariation]
    roles: dict[str, dict[str, float]]
    created: str
    commit: str | None
    versions: dict[str, str]
    hardware: dict[str, str]
    prompts_hash: str
    num: int
    seed: int
    steps: int
    guidance: float

    def to_json(self) -> dict[str, Any]:
        """Plain containers, as in the file."""
        return self.model_dump(mode="json")

    def sentences(self) -> list[str]:
        """One per level: the median over the layers, and the layer where it is largest."""
        said = []
        for level in LEVELS:
            values = {
                name: value
                for name, layer in self.layers.items()
                if (value := getattr(layer, level)) is not None
            }
            if values:
                worst = max(values, key=lambda name: values[name])
                said.append(
                    f"{level}: {median(values.values()):.2f}× in the median layer, at most "
                    f"{values[worst]:.2f}× ({worst})"
                )
        return said


def analyze(
    source: str | Path,
    out: str | Path,
    *,
    prompts: Sequence[str] | None = None,
    num: int = 4,
    seed: int = 0,
    steps: int = pipelines.DEFAULT_STEPS,
    guidance: float = pipelines.DEFAULT_GUIDANCE,
    device: str = "cpu",
    overwrite: bool = False,
    track: Track = quiet,
) -> Analysis:
    """Measure and plot the four levels of variation of a float pipeline.

    Args:
        source: Bundled name, directory in diffusers layout, or hub id.
        out: Directory to write: new, empty, or an earlier analysis with ``overwrite``.
        prompts: The first ``num`` are used; by default those that calibration would take.
        num: Trajectories, 1 or more.
        seed: Trajectory ``i`` starts from the noise of seed ``seed + i``.
        steps: Denoising steps, all of them recorded.
        guidance: Classifier-free guidance scale; at 1 or below there is no condition level.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        overwrite: Whether an earlier analysis may be replaced.
        track: Shows progress.
    """
    with atomic_directory(out, marker=VARIATION_FILE, overwrite=overwrite) as work:
        pipe = pipelines.load(source, device=device)
        chosen = (prompts or pipelines.calibration_prompts(source, num))[:num]
        recorded = pipelines.record(
            pipe,
            chosen,
            work / "recorded",
            source=str(source),
            seed=seed,
            steps=steps,
            kept=steps,
            guidance=guidance,
            track=track,
        )
        hooks = _watch(pipe.transformer, recorded, track)
        shutil.rmtree(work / "recorded")
        infos = adapter_for(pipe.transformer).layers(pipe.transformer)
        layers = {
            name: hook.variation(infos[name].role, infos[name].block)
            for name, hook in hooks.items()
        }
        analysis = Analysis(
            pipeline=str(source),
            layers=layers,
            roles=_by_role(layers),
            created=provenance.now(),
            commit=provenance.commit(),
            versions=provenance.versions(),
            hardware=provenance.hardware(device),
            prompts_hash=hash_prompts(chosen),
            num=len(chosen),
            seed=seed,
            steps=steps,
            guidance=guidance,
        )
        write_atomic(work / VARIATION_FILE, analysis.model_dump_json(indent=1))
        write_atomic(work / "summary.png", plots.summary(Path(source).name, layers))
        step_indices = torch.tensor(recorded.info.steps)
        for role in analysis.roles:
            name = max(
                (name for name in layers if layers[name].role == role),
                key=lambda name: layers[name].incoherence,
            )
            picture = plots.layer(name, layers[name], hooks[name].profile(step_indices))
            write_atomic(work / f"layer-{role}.png", picture)
    return analysis


@torch.inference_mode()
def _watch(
    transformer: torch.nn.Module, recorded: CalibrationSet, track: Track
) -> dict[str, VariationHook]:
    """Run the recorded calls with a hook on the first layer of each shared input."""
    adapter = adapter_for(transformer)
    infos = adapter.layers(transformer)
    steps = recorded.info.steps
    guided = recorded.info.guidance > 1
    hooks = {
        name: VariationHook(len(steps), guided)
        for name, info in infos.items()
        if info.group == info.name
    }
    handles = [
        transformer.get_submodule(name).register_forward_pre_hook(hook)
        for name, hook in hooks.items()
    ]
    device = next(transformer.parameters()).device
    try:
        for call in track(recorded, "analyze", len(recorded)):
            arguments = move(call.arguments, device)
            for name, hook in hooks.items():
                hook.position = steps.index(call.step)
                hook.valid = arguments.get(adapter.token_masks.get(infos[name].role))
            transformer(**arguments)
    finally:
        for handle in handles:
            handle.remove()
    return hooks


def _by_role(layers: dict[str, LayerVariation]) -> dict[str, dict[str, float]]:
    roles: dict[str, dict[str, list[float]]] = {}
    for layer in layers.values():
        levels = roles.setdefault(layer.role, {})
        for level in (*LEVELS, "channel_stability", "incoherence"):
            value = getattr(layer, level)
            if value is not None:
                levels.setdefault(level, []).append(value)
    return {
        role: {level: median(values) for level, values in levels.items()}
        for role, levels in roles.items()
    }
