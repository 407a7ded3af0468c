"""The whole path on the bundled pipelines: quantize, compare, report."""

import shutil
from pathlib import Path

from viditq import pipelines
from viditq.evaluation import Comparison, compare
from viditq.files import atomic_directory
from viditq.progress import Track, quiet
from viditq.report.page import REPORT_FILE, write_report

__all__ = ["PRESETS", "run_demo"]

PRESETS = ("w8a8-naive", "w8a8", "w4a8-naive", "w4a8")
_CALIBRATION_PROMPTS = 8  # half of what quantize takes: this is to be seen within minutes


def run_demo(
    out: str | Path,
    *,
    num_images: int = 12,
    num_videos: int = 4,
    steps: int = pipelines.DEFAULT_STEPS,
    device: str = "cpu",
    overwrite: bool = False,
    command: str | None = None,
    track: Track = quiet,
) -> tuple[Path, list[Comparison]]:
    """Quantize both bundled pipelines in four ways, compare, and write one report about all.

    Args:
        out: Directory to write; new, empty, or an earlier demo with ``overwrite``. It gets
            ``report.html``, ``sheet.png``, and for each pipeline its quantized copies and the
            comparison.
        num_images: Images per pipeline, 1 or more.
        num_videos: Videos per pipeline, 1 or more.
        steps: Denoising steps, of calibration too.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        overwrite: Whether an earlier demo may be replaced.
        command: The command line, for the record.
        track: Shows progress.

    Returns the report's file and the comparisons.
    """
    out = Path(out)
    numbers = {"shapes-image": num_images, "shapes-video": num_videos}
    with atomic_directory(out, marker=REPORT_FILE, overwrite=overwrite) as work:
        comparisons = [
            _compare_presets(
                work / name, name, num, steps=steps, device=device, command=command, track=track
            )
            for name, num in numbers.items()
        ]
        write_report(comparisons, work)
    return out / REPORT_FILE, [
        comparison.at(out / comparison.pipeline / "comparison") for comparison in comparisons
    ]


def _compare_presets(
    folder: Path,
    name: str,
    num: int,
    *,
    steps: int,
    device: str,
    command: str | None,
    track: Track,
) -> Comparison:
    calibration = folder / "calibration"
    quantized = [
        pipelines.quantize(
            name,
            folder / preset,
            preset=preset,
            prompts=pipelines.calibration_prompts(name, _CALIBRATION_PROMPTS),
            steps=steps,
            device=device,
            calibration=calibration,
            track=track,
        )
        for preset in PRESETS
    ]
    shutil.rmtree(calibration)
    comparison = compare(
        name,
        quantized,
        num=num,
        out=folder / "comparison",
        steps=steps,
        device=device,
        command=command,
        track=track,
    )
    # The folder is a temporary one: name the sources as they will be found beside the report.
    results = [
        result.model_copy(update={"source": f"{name}/{result.name}"})
        for result in comparison.results
    ]
    comparison = comparison.model_copy(update={"results": tuple(results)})
    comparison.save(folder / "comparison")
    return comparison.at(folder / "comparison")
