"""Ops at tiny shapes: all that can run here has a timing, the rest a reason."""

import pytest
import torch

from checks import refuses
from viditq import ops
from viditq.bench import bench_ops, row_ops
from viditq.bench.products import BF16, FP8, PRODUCTS, QUICK_PRODUCTS, Product
from viditq.bench.results import BenchResult, ProductRow, RowOpRow
from viditq.bench.row_ops import QUICK_ROWS, ROWS, Rows
from viditq.errors import InputError

PRODUCT = Product("small", 34, 48, 64)
ROW_SHAPE = Rows("small", 34, 64, 256, heads=4)


def run(**options):
    return bench_ops("cpu", products=[PRODUCT], rows=[ROW_SHAPE], **options)


def by_op(result, kind):
    return {row.op: row for row in result.rows if isinstance(row, kind)}


def test_rows(tmp_path):
    result = run(torchao=True, file=tmp_path / "ops.json", command="viditq bench ops")
    products = by_op(result, ProductRow)
    timed = {name for name, row in products.items() if row.timing is not None}
    assert timed == {
        BF16,
        "int8_linear",
        "int4_linear",
        "unpack_tcq4 + int8_linear",
        "quantize_rows + int8_linear",
    }
    for name in timed:
        assert products[name].tops > 0
        assert products[name].check
    for name in ("torch._int_mm", "fp8 row-wise _scaled_mm"):
        assert products[name].skipped == "compared on a GPU only"
    assert products["torchao int8 dynamic, compiled"].skipped == "torchao is not installed"
    row_ops = [row for row in result.rows if isinstance(row, RowOpRow)]
    assert [(row.op, row.k, row.balanced) for row in row_ops] == [
        (name, width, balanced)
        for balanced in (False, True)
        for name, width in (("quantize_rows", 64), ("norm_quantize", 64), ("gelu_quantize", 256))
    ] + [("norm_rotate", 64, False)]
    assert all(row.copy_share > 0 and row.equal_copy_share > 0 for row in row_ops)
    assert all(row.check == "codes equal" for row in row_ops[:-1])
    assert row_ops[-1].check == "error 1.00× torch's"
    assert result.copy_bytes_per_s > 0
    assert result.origin.command == "viditq bench ops"
    assert BenchResult.load(tmp_path / "ops.json") == result


def test_a_wrong_product_has_no_speed(monkeypatch):
    right = ops.int8_linear

    def wrong(*arguments, **options):
        return right(*arguments, **options) * 1.05

    monkeypatch.setattr(ops, "int8_linear", wrong)
    products = by_op(run(), ProductRow)
    row = products["int8_linear"]
    assert row.timing is row.tops is row.check is None
    assert row.skipped.startswith("wrong result: the error is ")
    assert products["int4_linear"].timing is not None


@pytest.mark.parametrize("what", ["codes", "scale"])
def test_a_wrong_row_op_has_no_speed(monkeypatch, what):
    right = row_ops.norm_quantize

    def wrong(*arguments, **options):
        codes, scale = right(*arguments, **options)
        return (codes // 2, scale) if what == "codes" else (codes, scale * 1.001)

    monkeypatch.setattr(row_ops, "norm_quantize", wrong)
    rows = by_op(run(), RowOpRow)
    assert rows["norm_quantize"].timing is rows["norm_quantize"].copy_share is None
    assert "wrong result" in rows["norm_quantize"].skipped
    assert rows["gelu_quantize"].timing is not None


def test_a_wrong_rotation_has_no_speed(monkeypatch):
    right = row_ops.norm_rotate
    monkeypatch.setattr(row_ops, "norm_rotate", lambda *a, **options: right(*a, **options) * 1.05)
    row = by_op(run(), RowOpRow)["norm_rotate"]
    assert row.timing is row.copy_share is None
    assert "wrong result" in row.skipped


def test_what_fails_has_a_reason(monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("\nlaunch failed\nat 0x0")

    def full(*arguments, **options):
        raise torch.OutOfMemoryError("2 GiB")

    monkeypatch.setattr(ops, "int8_linear", broken)
    monkeypatch.setattr(ops, "int4_linear", full)
    products = by_op(run(), ProductRow)
    assert products["int8_linear"].skipped == "RuntimeError: launch failed"
    assert products["int4_linear"].skipped == "out of memory"


def test_a_run_that_is_stopped_keeps_its_rows(monkeypatch, tmp_path):
    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(ops, "int4_linear", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(file=tmp_path / "ops.json")
    kept = BenchResult.load(tmp_path / "ops.json")
    assert [row.op for row in kept.rows] == [BF16, "int8_linear"]
    assert all(row.timing is not None for row in kept.rows)


def test_shapes():
    """Those that are asked for, and what every rotation and kernel needs of them."""
    assert len(PRODUCTS) == 7
    assert {*QUICK_PRODUCTS} < {*PRODUCTS}
    assert {*QUICK_ROWS} < {*ROWS}
    assert len(QUICK_PRODUCTS) == len(QUICK_ROWS) == 2
    assert all(shape.k % 128 == shape.hidden % 128 == 0 for shape in ROWS)


def test_no_such_device():
    with refuses(InputError, "tpu"):
        bench_ops("tpu")


@pytest.mark.gpu
def test_on_a_gpu():
    result = bench_ops(
        "cuda",
        products=[Product("a", 64, 48, 128)],
        rows=[Rows("a", 34, 128, 256, heads=4, across=True)],
    )
    fp8 = torch.cuda.get_device_capability() >= (8, 9)
    for row in result.rows:
        assert row.timing is not None or (row.op == FP8 and not fp8), (row.op, row.skipped)
        assert row.timing is None or row.peak_bytes > 0
    assert "gpu" in result.origin.hardware
