"""The tables of docs/performance.md, from what ``viditq bench --json`` wrote.

    python benchmarks/performance.py benchmarks/results/ops.json benchmarks/results/denoisers.json

Prints Markdown; no number is made here.
"""

import sys

from viditq.bench import BenchResult, markdown

if __name__ == "__main__":
    print(markdown([BenchResult.load(file) for file in sys.argv[1:]]))
