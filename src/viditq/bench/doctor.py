"""``viditq doctor``: which linear layers of a pipeline get faster on this device, and why not.

The transformer is made from its configuration without weights; its block linears are grouped by the
input that they read, as a fused block multiplies them (q, k and v of one input are one row), and
inputs by shape. Each shape is measured once, with random numbers: ``F.linear`` in bf16 for each
layer against quantizing the tokens and multiplying the codes. It says nothing about attention,
norms and the rest, nor about what fusing them gains on top. :mod:`viditq.bench.tune` measures a
model in hand likewise and acts on it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from viditq import checkpoint
from viditq.bench.random_models import quantized_at_random
from viditq.bench.record import explain
from viditq.bench.tables import TextTable
from viditq.bench.verdicts import LayerVerdict, judge, readers, shape_of, verdict_table
from viditq.blocks import has_fused_form
from viditq.errors import PipelineError
from viditq.models import LayerInfo, adapter_for, transformer_class
from viditq.pipelines.families import TRANSFORMER, family_named
from viditq.pipelines.sources import read_index, resolve, resolve_device
from viditq.plan import LayerPlan, Plan, Value
from viditq.progress import Track, quiet

__all__ = ["Diagnosis", "diagnose", "obstacle_on"]

BRANCHES = {"batched": 2, "separate": 1, "embedded": 1}
"""On how many branches of guidance a call runs together."""

TEXT_TOKENS = {
    "PixArtAlphaPipeline": 120,
    "PixArtSigmaPipeline": 300,
    "LattePipeline": 120,
    "OpenSoraPipeline": 120,
    "OpenSora12Pipeline": 300,
    "FluxPipeline": 512,
    "Flux2Pipeline": 512,
    "QwenImagePipeline": 128,
    "StableDiffusion3Pipeline": 77 + 256,
    "SanaPipeline": 300,
    "WanPipeline": 512,
    "LTXPipeline": 128,
    "HunyuanVideoPipeline": 256,
}
"""Caption length of each pipeline that reads captions, padding included; of one that pads to the
longest in the batch, what may be expected of it."""

ANY_SIZE = {
    "OpenSora12Pipeline": 15 * 15 * 27,
    "FluxPipeline": 64 * 64,
    "Flux2Pipeline": 64 * 64,
    "QwenImagePipeline": 64 * 64,
    "WanPipeline": 21 * 30 * 52,
    "CogVideoXPipeline": 226 + 13 * 30 * 45,
    "LTXPipeline": 21 * 16 * 22,
    "HunyuanVideoPipeline": 33 * 45 * 80,
}
"""Tokens of a sample of the default size, of pipelines whose transformer has no size of its own.

Those of the caption are among them where they are one sequence with the sample's.
"""

REPEATS_CAPTIONS = ("LattePipeline",)
"""Pipelines that show the caption to every frame by itself."""

TEXT_ROLES = ("cross_attn.kv",)

TEXT_STREAM = ("attn.add_", "attn.to_add_out", "ff_context.", "txt_mlp.")
"""How layers begin, in blocks of two streams, that only the caption goes through."""

BOTH_STREAMS = "single_transformer_blocks."
"""Blocks that the caption and the latents go through side by side."""

INT8_TENSOR_CORES = (7, 5)
"""First compute capability that has them."""

Layers = Sequence[tuple[int, LayerPlan]]
"""Features out and plan of each reader of one input."""

DEFAULT_PLAN = LayerPlan(smooth=0.5, hadamard=128)


class Diagnosis(Value):
    """What the doctor found. ``obstacle`` is what this device lacks, in one sentence."""

    pipeline: str
    transformer: str
    device: str
    obstacle: str | None
    layers: tuple[LayerVerdict, ...]

    @property
    def sentence(self) -> str:
        """The result in one line."""
        timed = [v for v in self.layers if v.is_timed]
        if not timed:
            return self.obstacle or "Nothing could be measured."
        before, after = sum(v.all_bf16_ms for v in timed), sum(v.all_ms for v in timed)
        faster = sum(v.layers for v in timed if v.verdict == "int8")
        text = (
            f"{faster} of {sum(v.layers for v in self.layers)} layers get faster on {self.device}: "
            f"all block linears of a step take {before:.2f} ms in bf16 and {after:.2f} ms with "
            f"these verdicts ({before / after:.2f}×)."
        )
        return text if self.obstacle is None else f"{text} {self.obstacle}"

    @property
    def advice(self) -> str | None:
        """What to do about layers that get slower, in one sentence; None if there are none."""
        if not any(v.is_timed and v.verdict == "bf16" for v in self.layers):
            return None
        return (
            "viditq.tune_(transformer, run) lets the layers of a loaded pipeline that get slower "
            "compute in bf16."
        )

    def table(self) -> TextTable:
        """One row per shape."""
        return verdict_table(f"{self.pipeline} ({self.transformer})", self.layers)


def diagnose(
    source: str | Path,
    device: str = "cuda",
    *,
    tokens: int | None = None,
    track: Track = quiet,
) -> Diagnosis:
    """Measure the block linears of a pipeline's transformer, shape by shape.

    Args:
        source: bundled name, directory in diffusers layout (float, or one that viditq wrote, whose
            plan is then followed), or hub id.
        device: ``cuda`` or ``cpu``; without a GPU the layers are listed and nothing is measured.
        tokens: M of a call, with both guidance branches if it batches them; by default what the
            configuration says.
        track: shows progress.

    Raises:
        PipelineError: there is no such pipeline, or none of a supported family.
        InputError: there is no such kind of device.
    """
    folder = resolve(source)
    index = read_index(folder)
    model, plans = _describe(folder / TRANSFORMER)
    infos = adapter_for(model).layers(model)
    counts = _token_counts(model, str(index["_class_name"]), tokens)
    groups = readers(model, (infos[name] for name in plans), has_fused_form)
    planned = _by_shape(groups, plans, counts)
    where = _gpu(device)
    obstacle = obstacle_on(where)
    verdicts = [
        shape if where is None else measure_shape(shape, layers, where, obstacle)
        for shape, layers in track(planned, "shapes", len(planned))
    ]
    return Diagnosis(
        pipeline=str(source),
        transformer=type(model).__name__,
        device=device if where is None else torch.cuda.get_device_name(where),
        obstacle=obstacle,
        layers=tuple(verdicts),
    )


def _gpu(device: str) -> torch.device | None:
    """The GPU called ``device``; None for the CPU, or if this machine has none."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        return None
    resolved = resolve_device(device)
    return resolved if resolved.type == "cuda" else None


def _describe(folder: Path) -> tuple[Any, Mapping[str, LayerPlan]]:
    """The transformer without storage, and the plan of each layer that is or would be quantized."""
    from accelerate import init_empty_weights

    path = folder / checkpoint.CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
        with init_empty_weights():
            model = transformer_class(config["_class_name"]).from_config(config)
    except Exception as error:
        raise PipelineError(f"{path} describes no transformer ({explain(error)}).") from error
    if checkpoint.is_quantized(folder):
        _, quantization = checkpoint.read_config(folder)
        return model, Plan.from_json(quantization.plan, where=str(path)).layers
    return model, dict.fromkeys(adapter_for(model).layers(model), DEFAULT_PLAN)


def _token_counts(model: Any, pipeline: str, tokens: int | None) -> dict[str, int]:
    """M of layers that read the caption (``text``), the latents, or ``both`` side by side."""
    config = model.config
    frames = int(config.get("video_length", 1))
    one = ANY_SIZE.get(pipeline) or frames * (config.sample_size // config.patch_size) ** 2
    branches = BRANCHES[family_named(pipeline).guidance]
    latent = branches * one if tokens is None else tokens
    text = branches * TEXT_TOKENS.get(pipeline, 0) * (frames if pipeline in REPEATS_CAPTIONS else 1)
    return {"latent": latent, "text": text, "both": latent + text}


def _reads(info: LayerInfo) -> str:
    """Which of the counts is the layer's."""
    if info.block.startswith(BOTH_STREAMS):
        return "both"
    in_block = info.name.removeprefix(f"{info.block}.")
    return "text" if info.role in TEXT_ROLES or in_block.startswith(TEXT_STREAM) else "latent"


def _by_shape(
    groups: Iterable[Sequence[LayerInfo]],
    plans: Mapping[str, LayerPlan],
    counts: Mapping[str, int],
) -> list[tuple[LayerVerdict, Layers]]:
    """Readers of inputs of one shape with weights of one format together, not yet measured."""
    alike: dict[object, list[Sequence[LayerInfo]]] = {}
    for group in groups:
        weights = tuple((info.out_features, plans[info.name].weight) for info in group)
        alike.setdefault((counts[_reads(group[0])], group[0].in_features, weights), []).append(
            group
        )
    return [
        (
            shape_of(members, counts[_reads(members[0][0])], plans),
            [(info.out_features, plans[info.name]) for info in members[0]],
        )
        for members in alike.values()
    ]


def obstacle_on(device: torch.device | None) -> str | None:
    """What keeps this device from being fast, in one sentence."""
    if device is None:
        return "There is no GPU to measure: on a CPU no layer gets faster, only smaller."
    if find_spec("triton") is None:
        return "Triton is not installed, so the ops run as plain torch; install triton."
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < INT8_TENSOR_CORES:
        return f"The chip (sm_{major}{minor}) has no int8 tensor cores."
    return None


def measure_shape(
    shape: LayerVerdict, layers: Layers, device: torch.device, obstacle: str | None
) -> LayerVerdict:
    """``shape`` with times on ``device`` and the verdict; the weights are random numbers."""
    try:
        x = torch.randn(shape.m, shape.k, device=device, dtype=torch.bfloat16)
        floats = [nn.Linear(shape.k, n, device=device, dtype=torch.bfloat16) for n, _ in layers]
        quantized = [
            quantized_at_random(linear, plan, x)
            for linear, (_, plan) in zip(floats, layers, strict=True)
        ]
    except Exception as error:
        return shape.model_copy(update={"verdict": "bf16", "reason": explain(error)})
    return judge(shape, x, quantized, floats, obstacle)
