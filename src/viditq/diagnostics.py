"""What quantizing did to each layer, as numbers that a report can show.

``LayerDiagnostics`` is stored beside the weights of a checkpoint. The figures come from the tokens
that calibration sampled; they describe one layer alone, with float inputs.
"""

import math
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import Tensor

__all__ = ["Distribution", "LayerDiagnostics", "StepDiagnostics", "incoherence", "sqnr_db"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Distribution(_Value):
    """Magnitudes of an activation: median, 99th percentile and largest."""

    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, x: Tensor) -> "Distribution":
        magnitudes = x.abs().float().flatten()
        places = [round(share * (len(magnitudes) - 1)) for share in (0.5, 0.99, 1)]
        if x.is_cuda:  # where selecting is slower than sorting
            p50, p99, largest = magnitudes.sort().values[places].tolist()
        else:
            p50, p99, largest = (magnitudes.kthvalue(1 + k).values.item() for k in places)
        return cls(p50=p50, p99=p99, max=largest)


class StepDiagnostics(_Value):
    """The layer's input at one denoising step, before and after balancing."""

    step: int
    before: Distribution
    after: Distribution


class LayerDiagnostics(_Value):
    """One quantized layer.

    Attributes:
        size_bytes: weight codes, scales and smoothing as stored.
        float_size_bytes: the weight in bf16.
        sqnr_db: signal to quantization noise of the layer's output; ``None`` if there is no error.
        incoherence_before, incoherence_after: max|x| / mean|x| of the input, raw and balanced.
    """

    role: str
    weight_format: str
    activation_format: str
    in_features: int
    out_features: int
    size_bytes: int
    float_size_bytes: int
    sqnr_db: float | None
    incoherence_before: float
    incoherence_after: float
    steps: list[StepDiagnostics]

    @staticmethod
    def activations(rows: Tensor, balanced: Tensor, row_steps: Tensor) -> dict[str, Any]:
        """The fields that describe the input.

        Args:
            rows: (R, K) sampled tokens.
            balanced: (R, K) the same after balancing.
            row_steps: (R,) their denoising steps.
        """
        steps = []
        for step in row_steps.unique().tolist():
            at = row_steps == step
            before, after = Distribution.of(rows[at]), Distribution.of(balanced[at])
            steps.append(StepDiagnostics(step=step, before=before, after=after))
        return {
            "incoherence_before": incoherence(rows),
            "incoherence_after": incoherence(balanced),
            "steps": steps,
        }


def incoherence(x: Tensor) -> float:
    """max|x| / mean|x|, the paper's measure of how hard a tensor is to quantize."""
    mean = x.abs().mean().item()
    return x.abs().max().item() / mean if mean else 1.0


def sqnr_db(output: Tensor, reference: Tensor) -> float | None:
    """``10 log10(Σ ref² / Σ (out - ref)²)`` in dB; ``None`` when the two are equal or ref is 0."""
    signal = reference.double().square().sum().item()
    noise = (output.double() - reference.double()).square().sum().item()
    return 10 * math.log10(signal / noise) if signal and noise else None
