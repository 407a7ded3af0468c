"""How long it takes, and how much memory, to quantize a full-size transformer: docs/performance.md.

    python benchmarks/quantizing.py pixart-sigma --preset w4a8 --work quantizing

Random weights at the published configuration, random inputs at the size that pipelines make, as
many calls as ``viditq quantize`` records: from recorded calls to packed codes in the model, stage
by stage. Stopped and called again, it goes on where it was. Writes
``benchmarks/results/quantizing-MODEL.json``, with ``-PRESET`` for others than ``w4a8``.
"""

import argparse
import json
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from viditq import load_recipe
from viditq.bench.models import MODELS, ModelCase, make_inputs
from viditq.bench.random_models import build
from viditq.calibration import CalibrationInfo, CalibrationSet, model_fingerprint
from viditq.evaluation import provenance
from viditq.nn import QuantLinear
from viditq.pipelines.record import DEFAULT_KEPT_STEPS, kept_steps
from viditq.streaming import quantize_transformer_

RESULTS = Path(__file__).parent / "results"
PRESET, STEPS = "w4a8", 20


class Stages:
    """Seconds of each stage, and what the last line on the terminal says."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, defaultdict[str, float](float)

    def track(
        self, items: Iterable[Any], description: str, total: int | None = None
    ) -> Iterator[Any]:
        start = time.monotonic()
        try:
            yield from items
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds = time.monotonic() - start
            self.seconds[description.split()[0]] += seconds
            print(f"{description}: {total} in {seconds:.1f} s", flush=True)


def recorded_at_random(
    case: ModelCase, model: torch.nn.Module, folder: Path, prompts: int
) -> CalibrationSet:
    """A calibration set as large as a pipeline's; each call has noise and a timestep of its own."""
    info = CalibrationInfo(
        source=case.name,
        model=model_fingerprint(model),
        prompts=tuple(f"prompt {number}" for number in range(prompts)),
        num_steps=STEPS,
        steps=kept_steps(STEPS, DEFAULT_KEPT_STEPS),
        guidance=4.5,
        seed=0,
    )
    recorded = CalibrationSet.create(folder, info)
    parameter = next(model.parameters())
    for prompt in recorded.missing:
        calls = []
        for number, step in enumerate(info.steps):
            seed = prompt * len(info.steps) + number
            arguments = make_inputs(case, parameter.device, parameter.dtype, seed)
            arguments.pop("return_dict")
            arguments["timestep"] = arguments["timestep"] * (1 - step / STEPS)
            calls.append((step, arguments))
        recorded.write_prompt(prompt, calls)
    return recorded


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("model", choices=list(MODELS))
    parser.add_argument("--preset", default=PRESET)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--one-block", action="store_true", help="of each kind, to try it out")
    parser.add_argument("--work", type=Path, default=Path("quantizing"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()

    case, device = MODELS[options.model], torch.device(options.device)
    config = case.one_of_each if options.one_block else case.config
    model = build(case.transformer, config, device, torch.bfloat16)
    if sum(p.numel() for p in model.parameters()) < 4e9:
        model = model.float()  # as pipelines are loaded to be quantized
    recorded = recorded_at_random(case, model, options.work / "recorded", options.prompts)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    stages, start = Stages(device), time.monotonic()
    plan, _ = quantize_transformer_(
        model, load_recipe(options.preset), recorded, options.work, track=stages.track
    )
    seconds = time.monotonic() - start
    layers = [module for module in model.modules() if isinstance(module, QuantLinear)]
    result = {
        "model": case.name,
        "preset": options.preset,
        "parameters": sum(m.in_features * m.out_features for m in layers),
        "layers": len(plan.layers),
        "calls": len(recorded),
        "seconds": round(seconds, 1),
        "stages": {name: round(value, 1) for name, value in stages.seconds.items()},
        "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "reserved_bytes": torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None,
        "size_bytes": sum(module.size_bytes for module in layers),
        "command": shlex.join(["python", *sys.argv]),
        "created": provenance.now(),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "hardware": provenance.hardware(str(device)),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    name = case.name if options.preset == PRESET else f"{case.name}-{options.preset}"
    file = options.out / f"quantizing-{name}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: result[k] for k in ("seconds", "stages", "peak_bytes")}))


if __name__ == "__main__":
    main()
