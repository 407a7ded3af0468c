"""Speed: how fast ops, blocks and denoisers are here, beside their peers.

Nothing gets a speed that has not given the right result in the same run.
"""

from viditq.bench.denoisers import bench_models
from viditq.bench.doctor import Diagnosis, diagnose
from viditq.bench.ops import bench_ops
from viditq.bench.results import BenchResult
from viditq.bench.support import support_table
from viditq.bench.tables import TextTable, markdown, tables
from viditq.bench.tune import Tuning, tune_

__all__ = [
    "BenchResult",
    "Diagnosis",
    "TextTable",
    "Tuning",
    "bench_models",
    "bench_ops",
    "diagnose",
    "markdown",
    "support_table",
    "tables",
    "tune_",
]
