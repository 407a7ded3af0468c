"""The same pictures from GPU kernels as from the CPU reference? The table of docs/performance.md.

    python benchmarks/devices.py --num 16 shapes-image

Quantizes a bundled pipeline with ``w8a8`` and samples it, and its float original, on CPU and GPU at
the same seeds. Writes ``benchmarks/results/devices-PIPELINE.json`` and prints the table.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from viditq import pipelines
from viditq.evaluation import provenance
from viditq.evaluation.metrics import psnr
from viditq.evaluation.sampling import full_fp32
from viditq.zoo import catalog

RESULTS = Path(__file__).parent / "results"
CUDA, BF16, FP32 = "cuda", torch.bfloat16, torch.float32


def measured(name: str, num: int, quantized: Path) -> dict[str, list[float]]:
    """PSNR in dB of each sample, by what is compared."""
    pipelines.quantize(name, quantized, preset="w8a8", device=CUDA)

    def samples(source: str | Path, device: str, dtype: torch.dtype, fuse: bool = True) -> Tensor:
        pipe = pipelines.load(source, device=device, dtype=dtype, fuse=fuse)
        with full_fp32():
            return pipelines.generate(pipe, catalog.held_out_prompts(name, num), range(num))

    on_cpu, floats = samples(quantized, "cpu", FP32, fuse=False), samples(name, CUDA, FP32)
    floats_on_cpu = samples(name, "cpu", FP32)
    pairs = {
        "w8a8, fp32: GPU kernels, fused, to the CPU reference": (
            samples(quantized, CUDA, FP32),
            on_cpu,
        ),
        "w8a8, fp32: GPU kernels, drop-in, to the CPU reference": (
            samples(quantized, CUDA, FP32, fuse=False),
            on_cpu,
        ),
        "w8a8, fp32: the CPU reference, to float in fp32": (on_cpu, floats),
        "w8a8, bf16: GPU kernels, fused, to float in fp32": (
            samples(quantized, CUDA, BF16),
            floats,
        ),
        "float, bf16: GPU, to float in fp32": (samples(name, CUDA, BF16), floats),
        "float, fp32: GPU, to CPU": (floats, floats_on_cpu),
    }
    return {label: list(map(psnr, *both)) for label, both in pairs.items()}


def table(values: dict[str, list[float]]) -> str:
    """Markdown."""
    lines = ["| | mean PSNR, dB | least |", "|---|---:|---:|"]
    for label, each in values.items():
        lines.append(f"| {label} | {sum(each) / len(each):.1f} | {min(each):.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("pipelines", nargs="*", default=["shapes-image", "shapes-video"])
    parser.add_argument("--num", type=int, default=16, help="samples per pipeline")
    options = parser.parse_args()
    for name in options.pipelines:
        with tempfile.TemporaryDirectory() as folder:
            values = measured(name, options.num, Path(folder) / "w8a8")
        data = {
            "command": f"python benchmarks/devices.py --num {options.num} {name}",
            "commit": provenance.commit(),
            "versions": provenance.versions(),
            "hardware": provenance.hardware(CUDA),
            "psnr_db": values,
        }
        (RESULTS / f"devices-{name}.json").write_text(json.dumps(data, indent=1) + "\n")
        print(f"### {name}\n\n{table(values)}\n", flush=True)


if __name__ == "__main__":
    main()
