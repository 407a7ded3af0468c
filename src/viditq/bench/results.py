"""The outcome of a benchmark: plain values that check themselves, and their JSON form.

A row holds either a timing or the reason why there is none: what failed its check, cannot run here
or ran out of memory has no speed. Times are in milliseconds, memory in bytes.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from viditq.errors import InputError
from viditq.files import write_atomic

__all__ = ["BenchResult", "Kind", "ModelRow", "Origin", "ProductRow", "Row", "RowOpRow", "Timing"]

Kind = Literal["ops", "blocks", "denoisers"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Timing(_Value):
    """Time of one call: the median, the 20th and the 80th percentile of ``repetitions``."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    repetitions: int


class Measured(_Value):
    """What every row has.

    Attributes:
        op: what ran, as tables call it.
        timing: None when ``skipped`` says why.
        check: what was compared before timing, and how near it came.
        skipped: why there is no timing.
        peak_bytes: most memory in use during a call, less what was in use before it (for a model:
            all of it); None on the CPU.
    """

    op: str
    timing: Timing | None = None
    check: str | None = None
    skipped: str | None = None
    peak_bytes: int | None = None

    @model_validator(mode="after")
    def _timed_or_explained(self) -> "Measured":
        if (self.timing is None) == (self.skipped is None):
            raise ValueError("a row has either a timing or the reason why there is none")
        return self


class ProductRow(Measured):
    """One matrix product: (M, K) activations, (N, K) weights; ``tops`` is 10¹² operations/s."""

    table: Literal["products"] = "products"
    case: str
    m: int
    n: int
    k: int
    tops: float | None = None


class RowOpRow(Measured):
    """One op that reads (M, K) and writes its codes or, ``norm_rotate``, as much again.

    Attributes:
        balanced: with smoothing and a rotation in blocks of 128.
        moved_bytes: what it must read and write.
        copy_share: its bandwidth as a share of that of a large copy.
        equal_copy_share: the time of a copy that moves as many bytes, as a share of its own. Below
            some ten MB a copy, too, is far from its full bandwidth.
    """

    table: Literal["row ops"] = "row ops"
    case: str
    m: int
    k: int
    balanced: bool
    moved_bytes: int
    copy_share: float | None = None
    equal_copy_share: float | None = None


class ModelRow(Measured):
    """One block or one whole denoiser step.

    Attributes:
        model: name in the table of models.
        part: ``denoiser``, or the list that the block stands in.
        weight_bytes: of the block linears as they are stored, scales and smoothing included; None
            for a model without adapter.
        first_call_s: time of the first call, compiling included.
        attention: kernels that it took, ``viditq`` or those of torch.
        fused_blocks: how many blocks of the model ran fused.
        graph: whether a CUDA graph was replayed.
    """

    table: Literal["models"] = "models"
    model: str
    part: str
    weight_bytes: int | None = None
    first_call_s: float | None = None
    attention: tuple[str, ...] = ()
    fused_blocks: int | None = None
    graph: bool | None = None


Row = Annotated[ProductRow | RowOpRow | ModelRow, Field(discriminator="table")]


class Origin(_Value):
    """What made the numbers; ``backend`` is the fastest that ours was allowed."""

    created: str
    command: str | None
    commit: str | None
    versions: dict[str, str]
    hardware: dict[str, str]
    device: str
    backend: str | None = None


class BenchResult(_Value):
    """One run. ``copy_bytes_per_s`` counts bytes read and bytes written."""

    schema_version: Literal[1] = 1
    kind: Kind
    origin: Origin
    copy_bytes_per_s: float | None = None
    rows: tuple[Row, ...] = ()

    def save(self, file: str | Path) -> Path:
        """Write the JSON form, whole or not at all."""
        return write_atomic(file, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, file: str | Path) -> "BenchResult":
        """Read a file that :meth:`save` wrote; InputError if it is another."""
        try:
            return cls.model_validate_json(Path(file).read_bytes())
        except OSError as error:
            raise InputError(f"There is no benchmark at {file}: {error.strerror}.") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{file} is no benchmark: {where}: {first['msg']}.") from error
