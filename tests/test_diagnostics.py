"""The numbers that a report shows about a layer."""

import math

import pytest
import torch

from viditq.diagnostics import Distribution, LayerDiagnostics, incoherence, sqnr_db


def test_incoherence():
    assert incoherence(torch.tensor([1.0, -1.0, 1.0, 1.0])) == 1
    assert incoherence(torch.tensor([0.0, 0.0, 0.0, -4.0])) == 4
    x = torch.randn(50, 8)
    assert incoherence(x * 1e-3) == pytest.approx(incoherence(x))
    assert incoherence(torch.zeros(3, 3)) == 1


def test_sqnr():
    reference = torch.randn(10, 10)
    assert sqnr_db(reference * 1.1, reference) == pytest.approx(20, abs=1e-3)
    assert sqnr_db(reference + 1e-3, reference) > sqnr_db(reference + 1e-2, reference)
    assert sqnr_db(reference, reference) is None
    assert sqnr_db(reference, torch.zeros_like(reference)) is None
    # Far below what fp32 sums would resolve.
    quiet = sqnr_db(reference.double() * (1 + 1e-9), reference.double())
    assert quiet == pytest.approx(180, abs=1e-2)


def test_distribution_is_of_magnitudes():
    d = Distribution.of(torch.tensor([[-100.0, *range(100)]]))
    assert (d.p50, d.p99, d.max) == (50, 99, 100)
    one = Distribution.of(torch.tensor([-2.0]))
    assert one.p50 == one.p99 == one.max == 2


def test_activations_are_told_by_step():
    rows = torch.tensor([[1.0, -1.0], [3.0, 1.0], [2.0, 2.0]])
    fields = LayerDiagnostics.activations(rows, rows / 2, torch.tensor([9, 0, 9]))
    assert [s.step for s in fields["steps"]] == [0, 9]
    assert fields["steps"][0].before.max == 3
    assert fields["steps"][1].before.max == 2
    assert fields["steps"][1].after.max == 1
    assert fields["incoherence_before"] == fields["incoherence_after"]
    assert fields["incoherence_before"] == pytest.approx(3 / (10 / 6))
    assert all(math.isfinite(s.after.p50) for s in fields["steps"])
