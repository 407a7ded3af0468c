"""The outcome of a contest between recipes: plain values, and their JSON form.

One row for each recipe, with its measures, the PSNR of every seed (whoever has two such files can
pair their rows) and its gain over what it is set against. The single samples with their readings
are in the comparison that a contest leaves beside this file.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from viditq.evaluation.gains import Gain, psnr_gain
from viditq.evaluation.lineup import Lineup
from viditq.evaluation.results import (
    Comparison,
    FloatMeasures,
    Measures,
    Provenance,
    Result,
    read_value,
)
from viditq.files import write_atomic

__all__ = ["CONTEST_FILE", "Contest", "Row"]

CONTEST_FILE = "contest.json"


class Row(Measures):
    """One recipe's measures.

    Attributes:
        psnr_db_by_seed: PSNR of each sample, from the first seed on.
        gain: over what it is set against; None for what is set against nothing.
    """

    psnr_db_by_seed: tuple[float, ...]
    gain: Gain | None


class Contest(BaseModel):
    """The recipes of a lineup on one pipeline.

    Attributes:
        kind: a ``shootout`` has the nearest to float first, a ``ladder`` its own order.
        bits: like ``w4a8``, which is also the name of viditq's own recipe.
        float_: The float pipeline itself (``float`` in JSON).
        float_bf16: The float pipeline run in bf16, the yardstick.
        absent: one sentence for each method that does not exist at these bits.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True
    )

    schema_version: Literal[1] = 1
    kind: Literal["shootout", "ladder"]
    bits: str
    pipeline: str
    float_: FloatMeasures = Field(validation_alias="float", serialization_alias="float")
    float_bf16: Row
    rows: tuple[Row, ...]
    absent: tuple[str, ...]
    provenance: Provenance

    @classmethod
    def of(cls, lineup: Lineup, comparison: Comparison) -> "Contest":
        """What ``comparison`` says about the recipes of ``lineup``."""
        assert comparison.float_bf16 is not None
        everything = {result.name: result for result in comparison.results}

        def row(result: Result) -> Row:
            over, gain = lineup.over(result.name), None
            if over is not None:
                gain = psnr_gain(result.psnr_by_seed, everything[over].psnr_by_seed, over)
            measures = {name: getattr(result, name) for name in Measures.model_fields}
            return Row(**measures, psnr_db_by_seed=result.psnr_by_seed, gain=gain)

        rows = [row(everything[recipe.name]) for recipe in lineup.recipes]
        if lineup.kind == "shootout":
            rows.sort(key=lambda row: -row.psnr_db)
        float_ = {name: getattr(comparison.float_, name) for name in FloatMeasures.model_fields}
        return cls(
            kind=lineup.kind,
            bits=lineup.bits,
            pipeline=comparison.pipeline,
            float_=FloatMeasures(**float_),
            float_bf16=row(comparison.float_bf16),
            rows=tuple(rows),
            absent=lineup.absent,
            provenance=comparison.provenance,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain containers, as in the file."""
        return self.model_dump(mode="json", by_alias=True)

    def save(self, path: str | Path) -> Path:
        """Write JSON into the folder ``path``, as ``contest.json``, or to that file."""
        text = self.model_dump_json(by_alias=True, indent=1)
        return write_atomic(_file(path), text)

    @classmethod
    def load(cls, path: str | Path) -> "Contest":
        """Read a contest's folder, or its JSON file of any name; InputError when it is none."""
        return read_value(cls, _file(path), "contest")


def _file(path: str | Path) -> Path:
    return Path(path) / CONTEST_FILE if Path(path).is_dir() else Path(path)
