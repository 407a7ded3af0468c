"""A comparison made up of drawn scenes and noise: everything a report can show, in milliseconds."""

import json
import random
from pathlib import Path

import pytest
import torch

from viditq.evaluation import Comparison, FloatResult, Provenance, Result, SampleRow
from viditq.evaluation.measure import mean_fields
from viditq.evaluation.samples import SampleStore
from viditq.zoo.batches import SceneBatch
from viditq.zoo.draw import render
from viditq.zoo.scenes import sample_scenes

NOISE = {"float_bf16": 0.014, "w8a8-naive": 0.02, "w8a8": 0.008, "w4a8-naive": 0.11, "w4a8": 0.05}
BITS = {"float_bf16": 16.0, "w8a8-naive": 8.13, "w8a8": 8.13, "w4a8-naive": 4.13, "w4a8": 4.13}
FLOAT_BYTES = 12_582_912


@pytest.fixture
def make_comparison():
    return build


def build(
    folder: Path,
    *,
    kind: str = "image",
    num: int = 4,
    names: tuple[str, ...] = ("w8a8-naive", "w8a8", "w4a8-naive", "w4a8"),
    judged: bool = True,
    layers: bool = True,
    bf16: bool = True,
) -> Comparison:
    stream = sample_scenes(kind, held_out=True, seed=0)
    scenes = [next(stream) for _ in range(num)]
    drawn = render(SceneBatch.of(scenes), torch.Generator().manual_seed(0))
    samples = drawn.float().div(255) if drawn.dtype == torch.uint8 else drawn
    if samples.shape[-1] != 3:
        samples = samples.movedim(-3, -1)
    if kind == "image" and samples.ndim == 5:
        samples = samples[:, 0]
    rng = random.Random(1)
    results = {}
    for name in ("float", *(["float_bf16"] if bf16 else []), *names):
        generator = torch.Generator().manual_seed(len(name))
        store = SampleStore(folder / "samples" / name, ("",) * num)
        rows = []
        for index, scene in enumerate(scenes):
            noise = NOISE.get(name, 0.0 if name == "float" else 0.06 + len(name) / 500) * (
                0.5 + rng.random()
            )
            store.write(
                index,
                samples[index] + noise * torch.randn(samples[index].shape, generator=generator),
            )
            row = {"index": index, "seed": 10 + index, "prompt": scene.caption()}
            if kind == "video":
                row["temporal_consistency"] = 0.97 + 0.02 * rng.random()
            if name != "float":
                row |= {
                    "psnr_db": -20 * torch.tensor(noise).log10().item(),
                    "ssim": 1 - 2 * noise,
                    "feature_distance": noise / 3,
                    "flow_difference": noise * 8 if kind == "video" else None,
                }
            if judged:
                reading = scene.attributes()
                if noise > 0.1 and index % 2:
                    reading = {**reading, "shape": "star" if reading["shape"] != "star" else "moon"}
                right = {key: value == reading[key] for key, value in scene.attributes().items()}
                row |= {"reading": reading, "correct": {**right, "all": all(right.values())}}
                if name != "float":
                    row["same_as_float"] = all(right.values())
            rows.append(SampleRow(**row))
        results[name] = mean_fields(rows)

    def result(name: str) -> Result:
        return Result(
            name=name,
            source=f"runs/{name}",
            weight_bits=BITS.get(name, 4.13),
            size_bytes=int(FLOAT_BYTES * BITS.get(name, 4.13) / 16),
            float_size_bytes=FLOAT_BYTES,
            **results[name],
        )

    comparison = Comparison(
        pipeline=f"shapes-{kind}",
        kind=kind,
        float_=FloatResult(name="float", source=f"shapes-{kind}", **results["float"]),
        float_bf16=result("float_bf16") if bf16 else None,
        results=tuple(result(name) for name in names),
        provenance=Provenance(
            created="2026-11-23T05:00:00+00:00",
            command="viditq compare shapes-image w8a8 --num 4 --out comparison",
            commit="0123456789ab",
            versions={"python": "3.11.9", "viditq": "0.1.0", "torch": "2.13.0"},
            hardware={"cpu": "A processor", "cores": "2 cores"},
            prompts_hash="ab" * 32,
            num=num,
            seed=10,
            steps=20,
            guidance=4.5,
            device="cpu",
            batch_size=8,
        ),
    )
    if layers:
        (folder / "layers").mkdir(parents=True)
        for name in names:
            sidecar = {"schema_version": 1, "layers": made_up_layers(name)}
            (folder / "layers" / f"{name}.json").write_text(json.dumps(sidecar))
    comparison.save(folder)
    return comparison.at(folder)


def made_up_layers(name: str) -> dict:
    rng = random.Random(name)
    kinds = {
        "attn1.to_q": ("self_attn.qkv", 18),
        "attn1.to_k": ("self_attn.qkv", 18),
        "attn1.to_out.0": ("self_attn.out", 12),
        "attn2.to_q": ("cross_attn.q", 9),
        "ff.net.0.proj": ("ffn.up", 22),
        "ff.net.2": ("ffn.down", 40),
    }
    bits = 8 if name.startswith("w8") else 4
    layers = {}
    for block in range(8):
        for kind, (role, spread) in kinds.items():
            before = spread * (0.6 + 0.8 * rng.random())
            after = before if "naive" in name else 5 + rng.random()
            steps = []
            for step in range(0, 20, 2):
                growth = 1 + step / 15
                steps.append(
                    {
                        "step": step,
                        "before": {"p50": 0.2, "p99": 0.9, "max": 0.25 * before * growth},
                        "after": {"p50": 0.3, "p99": 1.1, "max": 0.3 * after * (1 + step / 90)},
                    }
                )
            layers[f"transformer_blocks.{block}.{kind}"] = {
                "role": role,
                "weight_format": f"int{bits}",
                "activation_format": "int8",
                "in_features": 256,
                "out_features": 256,
                "size_bytes": 256 * 256 * bits // 8 + 1024,
                "float_size_bytes": 256 * 256 * 2,
                "sqnr_db": 6 * bits - spread / 4 + 4 * rng.random() - (6 if "naive" in name else 0),
                "incoherence_before": before,
                "incoherence_after": after,
                "steps": steps,
            }
    return layers
