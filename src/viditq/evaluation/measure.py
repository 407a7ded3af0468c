"""From stored samples to rows, and from rows to means with intervals.

Rows are made sample by sample, all pipelines at one sample, so that the float sample and its
optical flow are read and computed once, and never more than two samples are in memory.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from viditq.errors import InputError
from viditq.evaluation import metrics
from viditq.evaluation.intervals import Interval, bootstrap_mean, wilson
from viditq.evaluation.results import SampleRow
from viditq.evaluation.samples import SampleStore
from viditq.progress import Track, quiet
from viditq.zoo.judge import accuracy
from viditq.zoo.scenes import Scene

__all__ = ["Reader", "mean_fields", "measure"]

FLOAT = "float"
_AGAINST_FLOAT = ("psnr_db", "ssim", "feature_distance", "flow_difference", "temporal_consistency")


class Reader(metrics.FeatureNetwork, Protocol):
    """The judge: says what it sees and gives its features."""

    def read(self, samples: Tensor) -> list[dict[str, str]]:
        """``samples`` (B, H, W, 3) or (B, T, H, W, 3) in 0..1 → attribute → value, each."""
        ...


def measure(
    stores: Mapping[str, SampleStore],
    prompts: Sequence[str],
    seeds: Sequence[int],
    judge: Reader,
    *,
    read: bool,
    track: Track = quiet,
) -> dict[str, list[SampleRow]]:
    """Measure all samples of all pipelines against those of ``stores["float"]``.

    Args:
        stores: Pipeline name → its samples, complete; ``"float"`` is the reference.
        prompts: One per sample.
        seeds: One per sample.
        judge: Gives features, and readings when ``read``.
        read: Whether the judge was trained for these pictures.
        track: Shows the progress over samples.

    Raises InputError when two pipelines make samples of different shapes.
    """
    rows: dict[str, list[SampleRow]] = {name: [] for name in stores}
    for index in track(range(len(prompts)), "measure", len(prompts)):
        reference = stores[FLOAT].read(index)
        is_video = reference.ndim == 4
        said = _attributes(prompts[index]) if read else None
        flow = metrics.optical_flow(reference) if is_video else None
        float_reading: dict[str, str] | None = None
        for name in (FLOAT, *(name for name in stores if name != FLOAT)):
            sample = reference if name == FLOAT else stores[name].read(index)
            if sample.shape != reference.shape:
                raise InputError(
                    f"{name} makes samples of shape {tuple(sample.shape)}, the float pipeline "
                    f"{tuple(reference.shape)}; only pipelines of one size can be compared."
                )
            row: dict[str, Any] = {"index": index, "seed": seeds[index], "prompt": prompts[index]}
            if name != FLOAT:
                row["psnr_db"] = metrics.psnr(sample, reference)
                row["ssim"] = metrics.ssim(sample, reference)
                row["feature_distance"] = metrics.feature_distance(judge, sample, reference)
                if flow is not None:
                    row["flow_difference"] = metrics.flow_difference(
                        metrics.optical_flow(sample), flow
                    )
            if is_video:
                row["temporal_consistency"] = metrics.temporal_consistency(judge, sample)
            if read:
                reading = judge.read(sample[None])[0]
                float_reading = float_reading or reading
                row["reading"] = reading
                if said is not None:
                    right = accuracy([reading], [prompts[index]])
                    row["correct"] = {key: share == 1.0 for key, share in right.items()}
                if name != FLOAT:
                    # A growing shape has no one size: only what the caption says is compared.
                    keys = said or float_reading
                    row["same_as_float"] = all(
                        reading.get(key) == float_reading.get(key) for key in keys
                    )
            rows[name].append(SampleRow(**row))
    return rows


def mean_fields(rows: Sequence[SampleRow]) -> dict[str, Any]:
    """The fields of a ``Result`` that come from its rows: means, shares and their intervals."""
    fields: dict[str, Any] = {"samples": tuple(rows), "judge": _judge_fields(rows)}
    for key in _AGAINST_FLOAT:
        values = [value for row in rows if (value := getattr(row, key)) is not None]
        if values:
            fields[key] = sum(values) / len(values)
            fields[f"{key}_ci"] = bootstrap_mean(values)
    return fields


def _judge_fields(rows: Sequence[SampleRow]) -> dict[str, float | Interval] | None:
    answers: dict[str, list[bool]] = {}
    for row in rows:
        for attribute, correct in (row.correct or {}).items():
            answers.setdefault(attribute, []).append(correct)
    for row in rows:
        if row.same_as_float is not None:
            answers.setdefault("same_as_float", []).append(row.same_as_float)
    fields: dict[str, float | Interval] = {}
    for key, given in answers.items():
        fields[key] = sum(given) / len(given)
        fields[f"{key}_ci"] = wilson(sum(given), len(given))
    return fields or None


def _attributes(prompt: str) -> dict[str, str] | None:
    try:
        return Scene.parse(prompt).attributes()
    except ValueError:
        return None
