"""What refining or trellis coding is worth: recipes of viditq's and others, at the same seeds.

    python benchmarks/refining.py shapes-image-stress --recipes w4a8,w4a8-refined,w8a8-smoothquant
    python benchmarks/refining.py shapes-image --name trellis --recipes w4a8,w4a8-tcq --device cpu

Every recipe is quantized from one calibration and sampled at the seeds of the fp32 pipeline. Its
PSNR to the fp32 samples and what the judge reads otherwise, seed by seed, go to
``benchmarks/results/NAME-PIPELINE.json`` as soon as it is done, with gains over the first
recipe. It leaves out what ``viditq shootout`` measures beside these: optical flow and SSIM of
128 clips and six pipelines take an hour of a processor. ``--print`` only prints the table.
"""

import argparse
import json
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from viditq import checkpoint, pipelines
from viditq.evaluation import metrics, provenance
from viditq.evaluation.gains import psnr_gain
from viditq.evaluation.intervals import bootstrap_mean, wilson
from viditq.evaluation.sampling import Settings, Source, sample
from viditq.zoo import catalog
from viditq.zoo.judge import Judge

RESULTS = Path(__file__).parent / "results"
FLOAT, BF16 = "float", "float_bf16"


class Stages:
    """Seconds of each stage since they were last asked for."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def track(
        self, items: Iterable[Any], description: str, total: int | None = None
    ) -> Iterator[Any]:
        start = time.monotonic()
        yield from items
        seconds = round(time.monotonic() - start, 1)
        self._seconds[description] = self._seconds.get(description, 0) + seconds
        print(f"{description}: {total} in {seconds} s", flush=True)

    def take(self) -> dict[str, float]:
        seconds, self._seconds = self._seconds, {}
        return seconds


def row(
    name: str, path: Path, made: Sequence[Any], fp32: Sequence[Any], said: Sequence[Any]
) -> dict[str, Any]:
    """What is known of one recipe's samples beside those of the float pipeline."""
    judge = Judge.load()
    readings = [judge.read(each[None])[0] for each in made]
    psnr_db = [metrics.psnr(a, b) for a, b in zip(made, fp32, strict=True)]
    same = [a == b for a, b in zip(readings, said, strict=True)]
    bits, size_bytes = 16.0, None
    if name != BF16:
        summary = checkpoint.inspect(path)
        bits, size_bytes = summary.weight_bits, summary.size_bytes
    return {
        "name": name,
        "weight_bits": bits,
        "size_bytes": size_bytes,
        "psnr_db": sum(psnr_db) / len(psnr_db),
        "psnr_db_ci": bootstrap_mean(psnr_db),
        "same_as_float": sum(same) / len(same),
        "same_as_float_ci": wilson(sum(same), len(same)),
        "psnr_db_by_seed": [round(value, 3) for value in psnr_db],
    }


def command(options: argparse.Namespace) -> str:
    """What was called, without the folders it worked in."""
    kept = {
        key: getattr(options, key) for key in ("name", "recipes", "num", "batch_size", "device")
    }
    words = [f"--{key.replace('_', '-')}={value}" for key, value in kept.items()]
    return shlex.join(["python", "benchmarks/refining.py", options.pipeline, *words])


def table(result: dict[str, Any]) -> str:
    """Markdown, nearest to float first."""
    first = result["rows"][0]["name"]
    lines = [
        f"### {result['pipeline']}, {result['num']} samples",
        "",
        f"| | bits | PSNR to fp32, dB | over `{first}`, dB | read as the float sample |",
        "|---|---|---|---|---|",
    ]
    own = result["rows"][0]["psnr_db_by_seed"]
    for found in sorted(result["rows"], key=lambda found: -found["psnr_db"]):
        name = "float in bf16" if found["name"] == BF16 else f"`{found['name']}`"
        (low, high), over = found["psnr_db_ci"], "–"
        if found["name"] != first:
            gain = psnr_gain(found["psnr_db_by_seed"], own, first)
            over = "{:+.2f} [{:+.2f}, {:+.2f}] {}".format(
                gain.psnr_db, *gain.psnr_db_ci, gain.outcome
            )
        share, (least, most) = found["same_as_float"], found["same_as_float_ci"]
        lines.append(
            f"| {name} | {found['weight_bits']:.2f} | {found['psnr_db']:.2f} [{low:.2f}, "
            f"{high:.2f}] | {over} | {100 * share:.1f} % [{100 * least:.1f}, {100 * most:.1f}] |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("pipeline", choices=catalog.BUNDLED)
    parser.add_argument("--recipes", default="w4a8,w4a8-refined,w8a8-smoothquant")
    parser.add_argument("--name", default="refining", help="what the result's file begins with")
    parser.add_argument("--num", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--work", type=Path, default=Path("refining"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--print", action="store_true", help="only print the table")
    options = parser.parse_args()
    file = options.out / f"{options.name}-{options.pipeline}.json"
    if options.print:
        print(table(json.loads(file.read_text())))
        return

    work, stages = options.work / options.pipeline, Stages()
    settings = Settings(
        prompts=catalog.held_out_prompts(options.pipeline, options.num),
        seeds=range(options.num),
        steps=20,
        guidance=4.5,
        device=options.device,
        batch_size=options.batch_size,
    )

    def samples(name: str, source: Source) -> list[torch.Tensor]:
        store = sample(source, work / "samples" / name, settings, track=stages.track)
        return [store.read(index) for index in range(len(store))]

    float_path = pipelines.resolve(options.pipeline)
    fp32 = samples(FLOAT, Source(float_path))
    judge = Judge.load()
    said = [judge.read(each[None])[0] for each in fp32]
    rows: list[dict[str, Any]] = []
    for name in (*options.recipes.split(","), BF16):
        path, source = work / name, Source(float_path, torch.bfloat16)
        if name != BF16:
            source = Source(path)
            if not path.exists():
                pipelines.quantize(
                    options.pipeline,
                    path,
                    preset=name,
                    device=options.device,
                    calibration=work / "calibration",
                    track=stages.track,
                )
        made = row(name, path, samples(name, source), fp32, said)
        rows.append(made | {"seconds": stages.take()})
        result = {
            "pipeline": options.pipeline,
            "num": options.num,
            "rows": rows,
            "command": command(options),
            "created": provenance.now(),
            "commit": provenance.commit(),
            "versions": provenance.versions(),
            "hardware": provenance.hardware(options.device),
        }
        options.out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{options.pipeline}: {name} {made['psnr_db']:.2f} dB", flush=True)
    print(table(result))


if __name__ == "__main__":
    main()
