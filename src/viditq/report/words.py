"""What the report says in words: the verdict, and numbers as people read them."""

from collections.abc import Callable
from typing import Any

from viditq.evaluation import Comparison, Result, SampleRow
from viditq.evaluation.gains import Gain, psnr_gain

__all__ = ["FILTERS", "best", "gain", "other_reading", "verdict"]


def verdict(comparison: Comparison) -> list[dict[str, str]]:
    """The nearest of all, and the nearest among the smallest when that is another one.

    Each finding has ``what`` was found, the ``name`` of the result, ``facts`` and a ``detail``.
    Results within a tenth of the fewest bits count as the smallest: scales make the difference.
    """
    nearest = max(comparison.results, key=lambda result: result.psnr_db)
    fewest = min(result.weight_bits for result in comparison.results)
    smallest = max(
        (result for result in comparison.results if result.weight_bits <= 1.1 * fewest),
        key=lambda result: result.psnr_db,
    )
    findings = [_finding("Nearest to float", nearest, comparison)]
    if smallest.name != nearest.name:
        what = f"Nearest in about {smallest.weight_bits:.0f} bits"
        findings.append(_finding(what, smallest, comparison))
    return findings


def best(comparison: Comparison) -> dict[str, str]:
    """Column → name of the quantized pipeline that is best in it, where one is alone in that."""
    keys: dict[str, Callable[[Result], float | None]] = {
        "size": lambda result: -result.size_bytes,
        "psnr_db": lambda result: result.psnr_db,
        "ssim": lambda result: result.ssim,
        "feature_distance": lambda result: -result.feature_distance,
        "same_as_float": lambda result: (result.share("same_as_float") or (None,))[0],
        "flow_difference": lambda result: (
            None if result.flow_difference is None else -result.flow_difference
        ),
    }
    winners = {}
    for column, key in keys.items():
        scored = [
            (score, one.name) for one in comparison.results if (score := key(one)) is not None
        ]
        top = max(scored, default=(0.0, ""))[0]
        names = [name for score, name in scored if score == top]
        if len(names) == 1 and len(scored) > 1:
            winners[column] = names[0]
    return winners


def gain(value: Gain | None) -> str:
    """``+3.2 [+2.9, +3.5]``, and ``within`` where 0 is inside; empty where there is none."""
    if value is None:
        return ""
    low, high = value.psnr_db_ci
    within = ", within" if value.outcome == "within" else ""
    return f"{value.psnr_db:+.1f} [{low:+.1f}, {high:+.1f}]{within}"


def other_reading(row: SampleRow, float_row: SampleRow) -> str:
    """What the judge reads in this sample but not in the float sample: ``shape: star``."""
    if row.same_as_float is not False or row.reading is None or float_row.reading is None:
        return ""
    return ", ".join(
        f"{key}: {value}"
        for key, value in row.reading.items()
        if float_row.reading.get(key) != value
    )


def _finding(what: str, result: Result, comparison: Comparison) -> dict[str, str]:
    share = result.size_bytes / result.float_size_bytes
    details = []
    if comparison.float_bf16 is not None:
        details.append(_against_bf16(result, comparison.float_bf16))
    same = result.share("same_as_float")
    if same is not None:
        details.append(f"{_percent(same[0])} of the samples read just as float’s")
    return {
        "what": what,
        "name": result.name,
        "facts": f"{result.psnr_db:.1f} dB, {share:.2f} × the size",
        "detail": "; ".join(details),
    }


def _against_bf16(result: Result, yardstick: Result) -> str:
    """Seed by seed, and no claim where the interval of the difference holds 0."""
    found = psnr_gain(result.psnr_by_seed, yardstick.psnr_by_seed, yardstick.name)
    if found.outcome == "within":
        low, high = found.psnr_db_ci
        return f"about as near as the float pipeline run in bf16 ({low:+.1f} to {high:+.1f} dB)"
    side = "nearer to float than" if found.outcome == "won" else "farther from float than"
    return f"{abs(found.psnr_db):.1f} dB {side} the float pipeline run in bf16"


def _decibel(value: float) -> str:
    return f"{value:.1f}"


def _percent(value: float) -> str:
    digits = 0 if value in (0.0, 1.0) else 1
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def _interval(value: tuple[float, float], form: str) -> str:
    formatted = (FILTERS[form](end).removesuffix("\N{NO-BREAK SPACE}%") for end in value)
    return " – ".join(formatted)


def _bytes(value: int) -> str:
    amount, units = float(value), ["B", "KB", "MB", "GB"]
    while amount >= 1000 and len(units) > 1:
        amount, units = amount / 1000, units[1:]
    return f"{amount:.3g} {units[0]}" if amount < 1000 else f"{amount:.0f} {units[0]}"


FILTERS: dict[str, Callable[..., Any]] = {
    "decibel": _decibel,
    "percent": _percent,
    "small": lambda value: f"{value:.4f}",
    "similarity": lambda value: f"{value:.3f}",
    "bits": lambda value: f"{value:.2f}".rstrip("0").rstrip("."),
    "interval": _interval,
    "bytes": _bytes,
    "attributes": lambda judge: [
        key for key in judge if not key.endswith("_ci") and key not in ("all", "same_as_float")
    ],
}
