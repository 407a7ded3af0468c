"""Attention of PixArt and Latte in bf16: ours beside torch's, in turns, both checked first.

python benchmarks/attention.py --out attention.json
"""

import argparse
import json
from pathlib import Path
from statistics import median

import torch

from viditq.bench.record import origin
from viditq.bench.timing import measure
from viditq.ops import attention, use_backend

CASES = {
    "PixArt-Σ 1024², self-attention": (2, 4096, 4096),
    "PixArt-Σ 1024², to a caption of 300": (2, 4096, 300),
    "the same, masked": (2, 4096, 300, True),
    "PixArt-Σ 2048², self-attention": (2, 16384, 16384),
    "PixArt-Σ 512², self-attention": (2, 1024, 1024),
    "Latte-1 16 × 512², spatial": (32, 1024, 1024),
}
HEADS, FEATURES, ROUNDS = 16, 72, 5


def row(
    name: str, samples: int, queries: int, keys: int, masked: bool = False
) -> dict[str, str | float]:
    """Medians of rounds in which one follows the other, and errors against fp32."""
    joint = torch.randn(
        samples, max(queries, keys), 3, HEADS, FEATURES, device="cuda", dtype=torch.bfloat16
    )
    qkv = joint[:, :queries, 0], joint[:, :keys, 1], joint[:, :keys, 2]
    times: dict[str, list[float]] = {"hopper": [], "reference": []}
    errors = {}
    bias = None
    if masked:
        bias = torch.zeros(samples, keys, device="cuda", dtype=torch.bfloat16)
        bias[:, 120:] = -10000.0
    with use_backend("reference"):
        part = (t[:1, :, :2].float() for t in qkv)
        exact = attention(*part, None if bias is None else bias[:1])
    for backend in times:
        with use_backend(backend):
            y = attention(*qkv, bias)[:1, :, :2].float()
        errors[backend] = float((y - exact).norm() / exact.norm())
    for _ in range(ROUNDS):
        for backend, taken in times.items():
            with use_backend(backend):
                taken.append(measure(lambda: attention(*qkv, bias), qkv[0].device, 0.3).median_ms)
    ours, torchs = (median(taken) for taken in times.values())
    print(f"{name:40} {ours:.4f} ms, torch {torchs:.4f} ms, {torchs / ours:.2f} ×", flush=True)
    return {
        **{"case": name, "batch": samples, "queries": queries, "keys": keys, "masked": masked},
        **{"ours_ms": ours, "torch_ms": torchs, "times_torch": torchs / ours},
        **{"ours_error": errors["hopper"], "torch_error": errors["reference"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON")
    out = parser.parse_args().out
    made_by = origin(torch.device("cuda"), "python benchmarks/attention.py", "hopper")
    rows = [row(name, *shape) for name, shape in CASES.items()]
    told = {"kind": "attention", "origin": made_by.model_dump(mode="json"), "rows": rows}
    out.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
