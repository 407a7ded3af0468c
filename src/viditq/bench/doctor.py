"""``viditq doctor``: which linear layers of a pipeline get faster on this device, and why not.

The transformer is made from its configuration without weights; its block linears are grouped by
shape, and each shape is measured once, with random numbers: ``F.linear`` in bf16 against a
quantized layer (quantize the tokens, multiply the codes) as it would stand in the model. It says
nothing about attention, norms and the rest, nor about what fusing ops gains on top.
"""

import json
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import nn

from viditq import checkpoint
from viditq.bench.checks import near
from viditq.bench.random_models import quantized_at_random
from viditq.bench.record import explain
from viditq.bench.tables import NOTHING, TextTable
from viditq.bench.timing import clear_memory, measure
from viditq.errors import PipelineError
from viditq.models import LayerInfo, adapter_for, transformer_class
from viditq.ops import fastest_backend, use_backend
from viditq.pipelines.families import TRANSFORMER, family_named
from viditq.pipelines.sources import read_index, resolve, resolve_device
from viditq.plan import LayerPlan, Plan
from viditq.progress import Track, quiet

__all__ = ["Diagnosis", "LayerVerdict", "diagnose"]

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

FEW_TOKENS = 1024
"""Below, a product waits for its weight, not for arithmetic."""

DEFAULT_PLAN = LayerPlan(smooth=0.5, hadamard=128)
LARGEST_ERROR = 0.5
BUDGET_S = 0.3


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerVerdict(_Value):
    """All layers of one shape.

    Attributes:
        roles: that have this shape.
        layers: how many there are in the transformer.
        m, n, k: tokens of a call, features out, features in.
        weight: format of the quantized weight.
        bf16_ms, ours_ms: of one layer; None when nothing was measured.
        verdict: what to compute with here; None when nothing was measured.
        reason: why bf16.
    """

    roles: tuple[str, ...]
    layers: int
    m: int
    n: int
    k: int
    weight: str
    bf16_ms: float | None = None
    ours_ms: float | None = None
    verdict: Literal["int8", "bf16"] | None = None
    reason: str | None = None


class Diagnosis(_Value):
    """What the doctor found. ``obstacle`` is what this device lacks, in one sentence."""

    pipeline: str
    transformer: str
    device: str
    obstacle: str | None
    layers: tuple[LayerVerdict, ...]

    @property
    def sentence(self) -> str:
        """The result in one line."""
        timed = [v for v in self.layers if v.bf16_ms is not None and v.ours_ms is not None]
        if not timed:
            return self.obstacle or "Nothing could be measured."
        before = sum(v.layers * (v.bf16_ms or 0.0) for v in timed)
        after = sum(
            v.layers * ((v.ours_ms if v.verdict == "int8" else v.bf16_ms) or 0.0) for v in timed
        )
        faster = sum(v.layers for v in timed if v.verdict == "int8")
        text = (
            f"{faster} of {sum(v.layers for v in self.layers)} layers get faster on {self.device}: "
            f"all block linears of a step take {before:.2f} ms in bf16 and {after:.2f} ms with "
            f"these verdicts ({before / after:.2f}×)."
        )
        return text if self.obstacle is None else f"{text} {self.obstacle}"

    def table(self) -> TextTable:
        """One row per shape."""
        return TextTable(
            f"{self.pipeline} ({self.transformer})",
            ("role", "layers", "M × N × K", "bf16 ms", "ours ms", "ratio", "verdict"),
            tuple(
                (
                    ", ".join(v.roles),
                    str(v.layers),
                    f"{v.m} × {v.n} × {v.k}",
                    NOTHING if v.bf16_ms is None else f"{v.bf16_ms:.3f}",
                    NOTHING if v.ours_ms is None else f"{v.ours_ms:.3f}",
                    NOTHING if not (v.bf16_ms and v.ours_ms) else f"{v.bf16_ms / v.ours_ms:.2f}×",
                    " — ".join(filter(None, (v.verdict, v.reason))) or NOTHING,
                )
                for v in self.layers
            ),
        )


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
    planned = _by_shape((infos[name] for name in plans), plans, counts)
    where = _gpu(device)
    obstacle = _obstacle(where)
    verdicts = [
        shape if where is None else measure_shape(shape, plan, where, obstacle)
        for shape, plan in track(planned, "shapes", len(planned))
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
    infos: Iterable[LayerInfo], plans: Mapping[str, LayerPlan], counts: Mapping[str, int]
) -> list[tuple[LayerVerdict, LayerPlan]]:
    """Layers of one shape and weight format together, not yet measured."""
    groups: dict[tuple[int, int, int, str], list[LayerInfo]] = {}
    for info in infos:
        m = counts[_reads(info)]
        key = (m, info.out_features, info.in_features, plans[info.name].weight)
        groups.setdefault(key, []).append(info)
    return [
        (
            LayerVerdict(
                roles=tuple(dict.fromkeys(info.role for info in members)),
                layers=len(members),
                m=m,
                n=n,
                k=k,
                weight=weight,
            ),
            plans[members[0].name],
        )
        for (m, n, k, weight), members in groups.items()
    ]


def _obstacle(device: torch.device | None) -> str | None:
    """What keeps this device from being fast, in one sentence."""
    if device is None:
        return "There is no GPU to measure: on a CPU no layer gets faster, only smaller."
    if find_spec("triton") is None:
        return "Triton is not installed, so the ops run as plain torch; install triton."
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < INT8_TENSOR_CORES:
        return f"The chip (sm_{major}{minor}) has no int8 tensor cores."
    return None


@torch.no_grad()
def measure_shape(
    shape: LayerVerdict, plan: LayerPlan, device: torch.device, obstacle: str | None
) -> LayerVerdict:
    """``shape`` with times on ``device`` and the verdict."""
    clear_memory(device)
    try:
        linear = nn.Linear(shape.k, shape.n, device=device, dtype=torch.bfloat16)
        x = torch.randn(shape.m, shape.k, device=device, dtype=torch.bfloat16)
        quantized = quantized_at_random(linear, plan, x)
        bf16 = measure(lambda: F.linear(x, linear.weight, linear.bias), device, BUDGET_S).median_ms
        with use_backend(fastest_backend(device)):
            near(quantized(x), linear(x), LARGEST_ERROR)
            ours = measure(lambda: quantized(x), device, BUDGET_S).median_ms
    except Exception as error:
        return shape.model_copy(update={"verdict": "bf16", "reason": explain(error)})
    reason = None if ours < bf16 else obstacle or _why_slower(shape)
    return shape.model_copy(
        update={
            "bf16_ms": bf16,
            "ours_ms": ours,
            "verdict": "int8" if reason is None else "bf16",
            "reason": reason,
        }
    )


def _why_slower(shape: LayerVerdict) -> str:
    if shape.m < FEW_TOKENS:
        return f"too few tokens ({shape.m}): the product is short, and launching it costs the same"
    return f"quantizing costs more than the product saves at N = {shape.n}, K = {shape.k}"
