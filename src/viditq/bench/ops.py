"""``viditq bench ops``: every op at the shapes of full-size models, beside its peers."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from viditq.bench.products import PRODUCTS, QUICK_PRODUCTS, Product, product_rows
from viditq.bench.record import collect, origin
from viditq.bench.results import BenchResult, Row
from viditq.bench.row_ops import QUICK_ROWS, ROWS, Rows, row_op_rows
from viditq.bench.timing import copy_bandwidth
from viditq.ops import fastest_backend, use_backend
from viditq.pipelines.sources import resolve_device
from viditq.progress import Track, quiet

__all__ = ["bench_ops"]


def bench_ops(
    device: str = "cuda",
    *,
    quick: bool = False,
    torchao: bool = False,
    backend: str | None = None,
    products: Sequence[Product] | None = None,
    rows: Sequence[Rows] | None = None,
    file: str | Path | None = None,
    command: str | None = None,
    track: Track = quiet,
) -> BenchResult:
    """Check and time matrix products and row ops.

    Args:
        device: ``cuda`` or ``cpu``.
        quick: two shapes of each kind, in below 1 GiB.
        torchao: also torchao's layers, compiled; each takes a minute.
        backend: of :data:`viditq.ops.BACKENDS`, for ours on CUDA; by default the fastest there.
        products: shapes of the products, instead of the usual ones.
        rows: shapes of the row ops, likewise.
        file: JSON to write after every row.
        command: for the record.
        track: shows progress.

    Raises:
        InputError: the device is not there.
        ValueError: there is no such backend.
    """
    where = resolve_device(device)
    if products is None:
        products = QUICK_PRODUCTS if quick else PRODUCTS
    if rows is None:
        rows = QUICK_ROWS if quick else ROWS
    copy = copy_bandwidth(where)

    def measured() -> Iterator[Row]:
        for product in track(products, "products", len(products)):
            yield from product_rows(product, where, torchao=torchao)
        for shape in track(rows, "row ops", len(rows)):
            yield from row_op_rows(shape, where, copy)

    backend = backend or fastest_backend(where)
    made_by = origin(where, command, backend)
    with use_backend(backend):
        return collect("ops", measured(), made_by, copy_bytes_per_s=copy, file=file)
