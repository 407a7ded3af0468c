"""Row ops against a plain copy: they read a matrix once and write its codes, or as much again.

Such an op cannot be faster than memory, so its speed is told as a share of that of a copy in the
same run: a large one, and one that moves as many bytes. Results are checked first, on some rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from viditq import ops
from viditq.balancing import random_signs, rotation_block
from viditq.bench.checks import equal_codes, within_twice
from viditq.bench.record import guarded
from viditq.bench.results import RowOpRow
from viditq.bench.timing import clear_memory, copy_ms, measure, peak_memory
from viditq.ops.gelu_quantize import gelu_quantize
from viditq.ops.gelu_quantize import reference as gelu_reference
from viditq.ops.norm_quantize import norm_quantize
from viditq.ops.norm_quantize import reference as norm_reference
from viditq.ops.norm_rotate import Stream, norm_rotate
from viditq.ops.norm_rotate import reference as rotate_reference
from viditq.ops.quantize_rows import reference as rows_reference

__all__ = ["QUICK_ROWS", "ROWS", "Rows", "row_op_rows"]


@dataclass(frozen=True)
class Rows:
    """A model's activations.

    Attributes:
        name: of the model.
        m: tokens.
        k: features.
        hidden: features in the feed-forward.
        heads: whose queries and keys are normalized and rotated; 0 for none.
        across: with one norm for all heads.
    """

    name: str
    m: int
    k: int
    hidden: int
    heads: int = 0
    across: bool = False


ROWS = (
    Rows("PixArt", 8192, 1152, 4608),
    Rows("Latte", 32768, 1152, 4608),
    Rows("FLUX", 4608, 3072, 12288, heads=24),
    Rows("Wan-1.3B", 32760, 1536, 8960, heads=12, across=True),
    Rows("Wan-14B", 32760, 5120, 13824, heads=40, across=True),
)
QUICK_ROWS = tuple(r for r in ROWS if r.name in ("PixArt", "FLUX"))

BATCH = 2
"""Modulation vectors: conditional and unconditional."""

CHECKED_ROWS = 64
BLOCK = 128
EPS = 1e-6

Quantized = tuple[Tensor, Tensor]
"""Codes (M, K) int8 and scale (M,) fp32."""

Timed = tuple[Callable[[], Any], Callable[[], str]]
"""What runs an op, and what says that it is right."""


@dataclass(frozen=True)
class _Op:
    """One op on one input.

    Attributes:
        x: (M, K) bf16, what it reads.
        call: runs it.
        reference: its definition on some rows of ``x``, in the dtype that they are given in.
    """

    x: Tensor
    call: Callable[[], Quantized]
    reference: Callable[[Tensor], Quantized]


def row_op_rows(rows: Rows, device: torch.device, copy_bytes_per_s: float) -> Iterator[RowOpRow]:
    """One row per op, without balancing and with."""
    widths = {"quantize_rows": rows.k, "norm_quantize": rows.k, "gelu_quantize": rows.hidden}
    for balanced in (False, True):
        for name, width in widths.items():
            make = partial(_quantization, name, rows.m, width, balanced, device)
            yield _row(
                rows,
                name,
                width,
                balanced,
                _moved_bytes(rows.m, width),
                make,
                copy_bytes_per_s,
                device,
            )
    if rows.heads:
        make = partial(_rotation, rows, device)
        # The tables have each number twice.
        moved = rows.m * (4 * rows.k + 8 * rows.k // rows.heads)
        yield _row(rows, "norm_rotate", rows.k, False, moved, make, copy_bytes_per_s, device)


def _row(
    rows: Rows,
    name: str,
    width: int,
    balanced: bool,
    moved_bytes: int,
    make: Callable[[], Timed],
    copy_bytes_per_s: float,
    device: torch.device,
) -> RowOpRow:
    clear_memory(device)
    row = partial(
        RowOpRow,
        op=name,
        case=rows.name,
        m=rows.m,
        k=width,
        balanced=balanced,
        moved_bytes=moved_bytes,
    )
    return guarded(row, partial(_timed, make, moved_bytes, device, copy_bytes_per_s))


def _moved_bytes(m: int, k: int) -> int:
    """bf16 in, codes and scales out; vectors of one row are not counted."""
    return m * (3 * k + 4)


@torch.no_grad()
def _timed(
    make: Callable[[], Timed], moved_bytes: int, device: torch.device, copy_bytes_per_s: float
) -> dict[str, Any]:
    call, right = make()
    check = right()
    timing = measure(call, device)
    return {
        "timing": timing,
        "check": check,
        "peak_bytes": peak_memory(call, device, total=False),
        "copy_share": moved_bytes / (timing.median_ms / 1e3) / copy_bytes_per_s,
        "equal_copy_share": copy_ms(device, moved_bytes) / timing.median_ms,
    }


def _picked(m: int, device: torch.device) -> Tensor:
    """Rows that are checked."""
    return torch.linspace(0, m - 1, min(m, CHECKED_ROWS), device=device).long()


def _rotation(rows: Rows, device: torch.device) -> Timed:
    """Of keys that lie between queries and values, by tables with each number twice."""
    generator = torch.Generator(device).manual_seed(0)
    features = rows.k // rows.heads
    shape = (1, rows.m, 3, rows.heads, features)
    joint = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
    width = rows.k if rows.across else features
    weight = torch.rand(width, generator=generator, device=device, dtype=torch.bfloat16) + 0.5
    angles = torch.rand(
        (1, rows.m, 1, features // 2), generator=generator, device=device
    ).repeat_interleave(2, -1)
    x, cos, sin = joint[:, :, 1], angles.cos()[..., ::2], angles.sin()[..., ::2]
    stream = Stream(x, weight, EPS, (cos, sin))

    def call() -> Tensor:
        return norm_rotate(stream, across=rows.across)

    def check() -> str:
        picked = _picked(rows.m, device)
        rest = (weight, None, EPS, False, cos[:, picked], sin[:, picked], rows.across, *(None,) * 7)
        part = x[:, picked]
        expected, exact = (rotate_reference.norm_rotate(p, *rest) for p in (part, part.double()))
        return within_twice(call()[:, picked], expected, exact)

    return call, check


def _quantization(name: str, m: int, k: int, balanced: bool, device: torch.device) -> Timed:
    picked = _picked(m, device)
    op = _make(name, m, k, balanced, device, picked)
    return op.call, partial(_check, op, picked)


def _make(name: str, m: int, k: int, balanced: bool, device: torch.device, picked: Tensor) -> _Op:
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)

    x, block = normal(m, k), rotation_block(k, BLOCK) if balanced else 0
    smooth = None
    if balanced:
        smooth = random_signs(k, 0).to(device) * (0.5 * normal(k).float()).exp()
    if name == "quantize_rows":
        return _Op(
            x,
            lambda: ops.quantize_rows(x, smooth, block),
            lambda part: rows_reference.quantize_rows(part, smooth, block, 8),
        )
    if name == "gelu_quantize":
        return _Op(
            x,
            lambda: gelu_quantize(x, "gelu_tanh", smooth=smooth, hadamard=block),
            lambda part: gelu_reference.gelu_quantize(part, "gelu_tanh", False, smooth, block, 8),
        )
    gain, shift = 0.2 * normal(BATCH, k), 0.2 * normal(BATCH, k)
    of_row = picked * BATCH // m
    return _Op(
        x,
        lambda: norm_quantize(
            x, "layer", EPS, gain=gain, shift=shift, smooth=smooth, hadamard=block
        ),
        lambda part: norm_reference.norm_quantize(
            part, "layer", EPS, None, None, gain[of_row], shift[of_row], smooth, block, 8
        ),
    )


def _check(op: _Op, picked: Tensor) -> str:
    codes, scale = (t[picked] for t in op.call())
    expected_codes, expected_scale = op.reference(op.x[picked])
    _, exact_scale = op.reference(op.x[picked].double())
    within_twice(scale, expected_scale, exact_scale.double())
    return equal_codes(codes, expected_codes)
