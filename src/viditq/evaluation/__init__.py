"""Proof: what quantization changed in the samples, and how the activations vary."""

from viditq.evaluation.analyze import Analysis, analyze
from viditq.evaluation.compare import compare
from viditq.evaluation.contest import load_comparison, run_contest
from viditq.evaluation.gains import Gain
from viditq.evaluation.lineup import Lineup, ladder_lineup, shootout_lineup
from viditq.evaluation.results import Comparison, FloatResult, Provenance, Result, SampleRow
from viditq.evaluation.standings import Contest, Row

__all__ = [
    "Analysis",
    "Comparison",
    "Contest",
    "FloatResult",
    "Gain",
    "Lineup",
    "Provenance",
    "Result",
    "Row",
    "SampleRow",
    "analyze",
    "compare",
    "ladder_lineup",
    "load_comparison",
    "run_contest",
    "shootout_lineup",
]
