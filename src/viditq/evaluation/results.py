"""The outcome of a comparison: plain values that check themselves, and their JSON form.

``Comparison.save`` writes ``comparison.json``; ``Comparison.load`` reads the folder back, so a
report can be written again without making samples again. Every mean has a sibling ``…_ci`` with
its 95 % interval ``[low, high]``. What does not apply (motion of an image, the judge on a pipeline
that it was not trained for) is ``null``, never 0.
"""

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from viditq.errors import InputError
from viditq.evaluation.intervals import Interval
from viditq.files import write_atomic

__all__ = [
    "COMPARISON_FILE",
    "Comparison",
    "FloatMeasures",
    "FloatResult",
    "Measures",
    "Provenance",
    "Result",
    "SampleRow",
    "read_value",
]

COMPARISON_FILE = "comparison.json"
V = TypeVar("V", bound=BaseModel)


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SampleRow(_Value):
    """One sample of one pipeline, against the float sample of the same seed and prompt.

    Attributes:
        psnr_db, ssim, feature_distance, flow_difference: against the float sample.
        temporal_consistency: of this sample alone.
        reading: What the judge reads, attribute → value.
        correct: Attributes that the caption names → whether the judge reads just that.
        same_as_float: Whether the judge reads all attributes as in the float sample.
    """

    index: int
    seed: int
    prompt: str
    psnr_db: float | None = None
    ssim: float | None = None
    feature_distance: float | None = None
    temporal_consistency: float | None = None
    flow_difference: float | None = None
    reading: dict[str, str] | None = None
    correct: dict[str, bool] | None = None
    same_as_float: bool | None = None


class FloatMeasures(_Value):
    """What there is to measure on the float pipeline itself, without a reference.

    ``judge`` has, for each attribute, the share that the judge reads as the caption says, and its
    ``…_ci``.
    """

    name: str
    judge: dict[str, float | Interval] | None = None
    temporal_consistency: float | None = None
    temporal_consistency_ci: Interval | None = None

    def share(self, key: str) -> tuple[float, Interval] | None:
        """A share that the judge found, and its interval; None where it did not look."""
        judge = self.judge or {}
        share, interval = judge.get(key), judge.get(f"{key}_ci")
        if not isinstance(share, float) or not isinstance(interval, tuple):
            return None
        return share, interval


class Measures(FloatMeasures):
    """What there is to measure on one pipeline against the float pipeline at the same seeds.

    ``judge`` also has ``same_as_float``: the share of samples that the judge reads, in all
    attributes, as it reads the float sample. ``weight_bits`` is the true average over the
    quantized layers, scales included; the sizes are those layers' weights in bytes.
    """

    psnr_db: float
    psnr_db_ci: Interval
    ssim: float
    ssim_ci: Interval
    feature_distance: float
    feature_distance_ci: Interval
    flow_difference: float | None = None
    flow_difference_ci: Interval | None = None
    weight_bits: float
    size_bytes: int
    float_size_bytes: int


class FloatResult(FloatMeasures):
    """The float pipeline, where it comes from, and the row of every sample."""

    source: str
    samples: tuple[SampleRow, ...]


class Result(Measures, FloatResult):
    """One pipeline against the float pipeline, and the row of every sample."""

    @property
    def psnr_by_seed(self) -> tuple[float, ...]:
        """PSNR of each sample in dB, in the order of the seeds."""
        return tuple(row.psnr_db or 0.0 for row in self.samples)


class Provenance(_Value):
    """What made the numbers: enough to make them again."""

    created: str
    command: str | None
    commit: str | None
    versions: dict[str, str]
    hardware: dict[str, str]
    prompts_hash: str
    num: int
    seed: int
    steps: int
    guidance: float
    device: str
    batch_size: int


class Comparison(_Value):
    """A float pipeline, quantized ones, and how near they come.

    Attributes:
        pipeline: Name of the float pipeline.
        kind: ``image`` or ``video``.
        float_: The float pipeline itself (``float`` in JSON).
        float_bf16: The float pipeline run in bf16, a yardstick; None when it was not asked for.
        results: One per quantized directory, in the order given.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True
    )

    schema_version: Literal[1] = 1
    pipeline: str
    kind: Literal["image", "video"]
    float_: FloatResult = Field(validation_alias="float", serialization_alias="float")
    float_bf16: Result | None = None
    results: tuple[Result, ...]
    provenance: Provenance
    _folder: Path | None = PrivateAttr(default=None)

    @property
    def folder(self) -> Path:
        """Where the samples and the layers' diagnostics lie."""
        assert self._folder is not None
        return self._folder

    def at(self, folder: str | Path) -> "Comparison":
        """The same values, with samples and layers at ``folder``."""
        copy = self.model_copy()
        copy._folder = Path(folder)
        return copy

    def to_json(self) -> dict[str, Any]:
        """Plain containers, as in the file."""
        return self.model_dump(mode="json", by_alias=True)

    def save(self, folder: str | Path) -> Path:
        """Write ``comparison.json`` into ``folder``; returns the file."""
        text = self.model_dump_json(by_alias=True, indent=1)
        return write_atomic(Path(folder) / COMPARISON_FILE, text)

    @classmethod
    def load(cls, folder: str | Path) -> "Comparison":
        """Read a folder written by ``compare``.

        Raises InputError when the file is missing or is not a comparison of this version.
        """
        return read_value(cls, Path(folder) / COMPARISON_FILE, "comparison").at(folder)


def read_value(kind: type[V], path: Path, what: str) -> V:
    """The value in the JSON file ``path``; InputError when there is no such ``what``."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"There is no {what} at {path}: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path} is not a {what}: {where}: {first['msg']}.") from error
