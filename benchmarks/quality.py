"""Quality of the presets on the bundled pipelines and their stress variants: the tables of
docs/results.md.

    python benchmarks/quality.py --num 64 --work quality

Each pipeline is quantized with every preset from one calibration set and compared with its fp32
samples at the same seeds. The numbers, with hardware and versions, go to
``benchmarks/results/quality-PIPELINE.json``; the tables are printed. Samples, calibrations and,
with ``--report``, the comparison as a page stay in ``--work``: a run that was stopped goes on, and
the folder may be deleted afterwards.
"""

import argparse
import json
from pathlib import Path

from viditq import pipelines
from viditq.evaluation import Comparison, Result, compare
from viditq.evaluation.intervals import bootstrap_mean
from viditq.progress import quiet
from viditq.report import write_report
from viditq.zoo import catalog

PRESETS = ("w8a8-naive", "w8a8", "w6a6", "w4a8-naive", "w4a8")
PAIRS = (("w8a8", "w8a8-naive"), ("w8a8", "float_bf16"), ("w4a8", "w4a8-naive"))
RESULTS = Path(__file__).parent / "results"


def run(name: str, num: int, work: Path, device: str, command: str) -> Comparison:
    """Quantize and compare one pipeline, or take what an earlier run left."""
    folder = work / name
    quantized = [folder / preset for preset in PRESETS]
    for preset, out in zip(PRESETS, quantized, strict=True):
        if not out.exists():
            print(f"{name}: {preset}", flush=True)
            calibration = folder / "calibration"
            pipelines.quantize(name, out, preset=preset, device=device, calibration=calibration)
    print(f"{name}: {num} samples of each", flush=True)
    return compare(
        name,
        quantized,
        num=num,
        out=folder / "comparison",
        device=device,
        overwrite=True,
        command=command,
        track=quiet,
    )


def row(result: Result) -> dict[str, object]:
    """The numbers of one pipeline without its samples."""
    return result.model_dump(mode="json", exclude={"samples", "source"})


def difference(comparison: Comparison, first: str, second: str) -> dict[str, object]:
    """Mean PSNR gain of ``first`` over ``second``, seed by seed, with its 95 % interval."""
    everything = {result.name: result for result in comparison.results}
    if comparison.float_bf16 is not None:
        everything["float_bf16"] = comparison.float_bf16
    gains = [
        a.psnr_db - b.psnr_db
        for a, b in zip(everything[first].samples, everything[second].samples, strict=True)
        if a.psnr_db is not None and b.psnr_db is not None
    ]
    mean = sum(gains) / len(gains)
    return {"of": first, "over": second, "psnr_db": mean, "psnr_db_ci": bootstrap_mean(gains)}


def summary(comparison: Comparison) -> dict[str, object]:
    """What is kept in benchmarks/results."""
    bf16 = comparison.float_bf16
    return {
        "pipeline": comparison.pipeline,
        "float_judge": comparison.float_.judge,
        "float_bf16": None if bf16 is None else row(bf16),
        "results": [row(result) for result in comparison.results],
        "gains": [difference(comparison, *pair) for pair in PAIRS],
        "provenance": comparison.provenance.model_dump(mode="json"),
    }


def table(data: dict) -> str:
    """Markdown: one line per preset, one per gain."""
    lines = [
        f"### {data['pipeline']}",
        "",
        "| | bits | PSNR to fp32, dB | SSIM | feature distance | read as the float sample |",
        "|---|---|---|---|---|---|",
    ]
    rows = [("float in bf16", data["float_bf16"])] + [
        (f"`{r['name']}`", r) for r in data["results"]
    ]
    for name, result in rows:
        judge, psnr = result["judge"], result["psnr_db_ci"]
        low, high = (100 * bound for bound in judge["same_as_float_ci"])
        lines.append(
            f"| {name} | {result['weight_bits']:.2f} "
            f"| {result['psnr_db']:.2f} [{psnr[0]:.2f}, {psnr[1]:.2f}] "
            f"| {result['ssim']:.4f} | {result['feature_distance']:.4f} "
            f"| {100 * judge['same_as_float']:.1f} % [{low:.1f}, {high:.1f}] |"
        )
    lines.append("")
    for gain in data["gains"]:
        low, high = gain["psnr_db_ci"]
        lines.append(
            f"- {gain['of']} over {gain['over']}: "
            f"{gain['psnr_db']:+.2f} dB [{low:+.2f}, {high:+.2f}]"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--num", type=int, default=64, help="samples per pipeline")
    parser.add_argument("--work", type=Path, default=Path("quality"), help="folder to work in")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pipelines", nargs="+", default=list(catalog.BUNDLED))
    parser.add_argument("--report", action="store_true", help="write the HTML report too")
    options = parser.parse_args()
    command = f"python benchmarks/quality.py --num {options.num} --device {options.device}"
    RESULTS.mkdir(exist_ok=True)
    for name in options.pipelines:
        comparison = run(name, options.num, options.work, options.device, command)
        data = summary(comparison)
        (RESULTS / f"quality-{name}.json").write_text(json.dumps(data, indent=1) + "\n")
        print(table(data), flush=True)
        if options.report:
            write_report(comparison, options.work / name / "comparison")


if __name__ == "__main__":
    main()
