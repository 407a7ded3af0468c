"""Every method on the bundled pipelines and their stress variants, at several bits: the tables of
docs/results.md.

    python benchmarks/quality.py --num 128 --work contests

Each pair of pipeline and bits is one ``viditq shootout``, which works, and goes on, in a folder of
``--work``; its rows go to ``benchmarks/results/shootout-PIPELINE-BITS.json`` with hardware and
versions, and are printed as Markdown. ``--print`` only prints what is there, and what
``viditq ablate --json`` wrote.
"""

import argparse
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from viditq.evaluation import Contest, Row, run_contest, shootout_lineup
from viditq.report import write_contest_report
from viditq.zoo import catalog

RESULTS = Path(__file__).parent / "results"
BITS = ("w8a8", "w6a6", "w4a8")


def table(contest: Contest) -> str:
    """Markdown: one line per recipe, nearest to float first, and the yardstick above them."""
    over = f"over `{contest.bits}`, dB" if contest.kind == "shootout" else "over the row before, dB"
    lines = [
        f"### {contest.pipeline}, {contest.bits}",
        "",
        f"| | bits | MB | PSNR to fp32, dB | {over} | SSIM | feature distance "
        "| read as the float sample | caption right |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in (contest.float_bf16, *contest.rows):
        name = "float in bf16" if row is contest.float_bf16 else f"`{row.name}`"
        low, high = row.psnr_db_ci
        cells = [
            f"**{name}**" if row.name == contest.bits else name,
            f"{row.weight_bits:.2f}",
            f"{row.size_bytes / 1e6:.2f}",
            f"{row.psnr_db:.2f} [{low:.2f}, {high:.2f}]",
            gain(row),
            f"{row.ssim:.4f}",
            f"{row.feature_distance:.4f}",
            share(row, "same_as_float"),
            share(row, "all"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *contest.absent]
    return "\n".join(lines).rstrip() + "\n"


def gain(row: Row) -> str:
    if row.gain is None:
        return "–"
    low, high = row.gain.psnr_db_ci
    return f"{row.gain.psnr_db:+.2f} [{low:+.2f}, {high:+.2f}] {row.gain.outcome}"


def share(row: Row, key: str) -> str:
    found = row.share(key)
    if found is None:
        return "–"
    value, (low, high) = found
    return f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def contests(options: argparse.Namespace) -> Iterator[Contest]:
    """Run, or go on with, one shootout after the other."""
    RESULTS.mkdir(exist_ok=True)
    for pipeline in options.pipelines:
        for bits in options.bits:
            out = options.work / f"{pipeline}-{bits}"
            contest = run_contest(
                pipeline,
                shootout_lineup(bits, options.methods),
                num=options.num,
                batch_size=options.batch_size,
                out=out,
                device=options.device,
                gpus=options.gpus,
                workers=options.workers,
                overwrite=options.overwrite,
                command=shlex.join(["python", *sys.argv]),
                tell=lambda line, where=f"{pipeline}, {bits}": print(where, line, flush=True),
            )
            write_contest_report(out)
            contest.save(RESULTS / f"shootout-{pipeline}-{bits}.json")
            yield contest


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--num", type=int, default=128, help="samples per method")
    parser.add_argument("--batch-size", type=int, default=8, help="samples made together")
    parser.add_argument("--work", type=Path, default=Path("contests"), help="folder to work in")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--gpus", type=int, help="with --device cuda; all by default")
    parser.add_argument("--workers", type=int, help="processes on the CPU")
    parser.add_argument("--pipelines", nargs="+", default=list(catalog.BUNDLED))
    parser.add_argument("--bits", nargs="+", default=list(BITS))
    parser.add_argument("--methods", default="all", help="as for viditq shootout")
    parser.add_argument("--overwrite", action="store_true", help="replace what does not fit")
    parser.add_argument(
        "--print",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="only print tables: of these files, or of the contests that there are",
    )
    options = parser.parse_args()
    if options.print is None:
        found = contests(options)
    else:
        own = (
            RESULTS / f"shootout-{pipeline}-{bits}.json"
            for pipeline in options.pipelines
            for bits in options.bits
        )
        found = map(Contest.load, options.print or filter(Path.exists, own))
    for contest in found:
        print(table(contest), flush=True)


if __name__ == "__main__":
    main()
