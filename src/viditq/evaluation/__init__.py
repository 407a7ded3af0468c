"""Proof: what quantization changed in the samples, and how the activations vary."""

from viditq.evaluation.analyze import Analysis, analyze
from viditq.evaluation.compare import compare
from viditq.evaluation.results import Comparison, FloatResult, Provenance, Result, SampleRow

__all__ = [
    "Analysis",
    "Comparison",
    "FloatResult",
    "Provenance",
    "Result",
    "SampleRow",
    "analyze",
    "compare",
]
