"""How the activations of a float pipeline vary along its own sampling trajectories.

``analyze`` records the transformer's inputs for a few prompts at every step and runs the
transformer on them twice with a hook on each input of the block linears: once to see how it varies,
and, with the balancing that follows from that, once to see what balancing changes. It writes
``out``:

    out/variation.json     the numbers, all layers and medians by role (:class:`Analysis`)
    out/summary.png        all layers: the four levels and the static share side by side
    out/balance.png        all layers: incoherence before and after balancing
    out/layer-ROLE.png     one layer of each role, the most uneven one
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from viditq import pipelines
from viditq.calibration import CalibrationSet, move
from viditq.convert import group_layers, linear_named
from viditq.evaluation import plots, provenance
from viditq.evaluation.incoherence import (
    Balanced,
    Incoherence,
    IncoherenceHook,
    balances,
    weight_incoherence,
)
from viditq.evaluation.variation import LayerVariation, Variation, VariationHook
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
        roles: Role → the medians over its layers.
        created, commit, versions, hardware, prompts_hash, num, seed, steps, guidance: provenance.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pipeline: str
    layers: dict[str, LayerVariation]
    roles: dict[str, Variation]
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
        """One per level and measure: the median over the layers, and the layer at the far end."""
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
        shares = {name: layer.static_share for name, layer in self.layers.items()}
        least = min(shares, key=lambda name: shares[name])
        said.append(
            f"static share: {_percent(median(shares.values()))} of the channel pattern is the same "
            f"at every step in the median layer, least {_percent(shares[least])} ({least})"
        )
        every = Variation.median(list(self.layers.values())).incoherence
        said.append(_incoherence_sentence("token", every.token))
        said.append(_incoherence_sentence("weight", every.weight))
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
    """Measure and plot how a float pipeline's layer inputs vary, and what balancing changes.

    Of several transformers it is the first that is watched.

    Args:
        source: Bundled name, directory in diffusers layout, or hub id.
        out: Directory to write: new, empty, or an earlier analysis with ``overwrite``.
        prompts: The first ``num`` are used; by default those that calibration would take.
        num: Trajectories, 1 or more.
        seed: Trajectory ``i`` starts from the noise of seed ``seed + i``.
        steps: Denoising steps, all of them recorded.
        guidance: Classifier-free guidance scale; at 1 or below, and of pipelines that do not batch
            the branches, there is no condition level.
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
        guided = guidance > 1 and pipelines.family(pipe).guidance == "batched"
        hooks = _vary(pipe.transformer, recorded, guided, track)
        balanced = _balance(pipe.transformer, recorded, hooks, guided, track)
        shutil.rmtree(work / "recorded")
        infos = adapter_for(pipe.transformer).layers(pipe.transformer)
        layers = {
            name: hook.variation(infos[name].role, infos[name].block, balanced[name])
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
        write_atomic(work / "balance.png", plots.balance(Path(source).name, layers))
        step_indices = torch.tensor(recorded.info.steps)
        for role in analysis.roles:
            name = max(
                (name for name in layers if layers[name].role == role),
                key=lambda name: layers[name].incoherence.call.raw,
            )
            picture = plots.layer(name, layers[name], hooks[name].profile(step_indices))
            write_atomic(work / f"layer-{role}.png", picture)
    return analysis


def _vary(
    transformer: torch.nn.Module, recorded: CalibrationSet, guided: bool, track: Track
) -> dict[str, VariationHook]:
    """The first pass, with a hook on the first layer of each shared input."""
    steps = len(recorded.info.steps)
    infos = adapter_for(transformer).layers(transformer)
    hooks = {name: VariationHook(steps, guided) for name in group_layers(infos.values())}
    _watch(transformer, recorded, hooks, track, "analyze")
    return hooks


def _balance(
    transformer: torch.nn.Module,
    recorded: CalibrationSet,
    varied: Mapping[str, VariationHook],
    guided: bool,
    track: Track,
) -> dict[str, Incoherence]:
    """The second pass, with the balances that follow from the first."""
    steps = len(recorded.info.steps)
    hooks: dict[str, IncoherenceHook] = {}
    weights: dict[str, Balanced] = {}
    infos = adapter_for(transformer).layers(transformer)
    for name, readers in group_layers(infos.values()).items():
        linears = [linear_named(transformer, info.name) for info in readers]
        weight = torch.cat([linear.weight.detach().float() for linear in linears])
        ways = balances(varied[name].step_amax.to(weight.device), weight)
        hooks[name] = IncoherenceHook(steps, guided, ways, weight.shape[1])
        weights[name] = weight_incoherence(ways, weight)
    _watch(transformer, recorded, hooks, track, "balance")
    return {name: hook.incoherence(weights[name]) for name, hook in hooks.items()}


@torch.inference_mode()
def _watch(
    transformer: torch.nn.Module,
    recorded: CalibrationSet,
    hooks: Mapping[str, VariationHook] | Mapping[str, IncoherenceHook],
    track: Track,
    what: str,
) -> None:
    """Run the recorded calls with the hooks on the layers of these names."""
    adapter = adapter_for(transformer)
    infos = adapter.layers(transformer)
    steps = recorded.info.steps
    handles = [
        transformer.get_submodule(name).register_forward_pre_hook(hook)
        for name, hook in hooks.items()
    ]
    device = next(transformer.parameters()).device
    try:
        for call in track(recorded, what, len(recorded)):
            arguments = move(call.arguments, device)
            for name, hook in hooks.items():
                hook.position = steps.index(call.step)
                hook.valid = arguments.get(adapter.token_mask(infos[name]))
            transformer(**arguments)
    finally:
        for handle in handles:
            handle.remove()


def _by_role(layers: Mapping[str, LayerVariation]) -> dict[str, Variation]:
    roles: dict[str, list[Variation]] = {}
    for layer in layers.values():
        roles.setdefault(layer.role, []).append(layer)
    return {role: Variation.median(own) for role, own in roles.items()}


def _incoherence_sentence(what: str, value: Balanced) -> str:
    return (
        f"{what} incoherence: {value.raw:.1f} in the median layer as it is, {value.scaled:.1f} "
        f"scaled, {value.rotated:.1f} rotated, {value.both:.1f} scaled and rotated"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
