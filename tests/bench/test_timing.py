"""Repetitions, percentiles, and work that is given up. Times themselves are not asserted."""

import time

import pytest
import torch

from viditq.bench import timing

CPU = torch.device("cpu")


@pytest.mark.parametrize(("budget_s", "repetitions"), [(0.0, timing.FEWEST), (60.0, 4)])
def test_repetitions_fit_the_budget(budget_s, repetitions):
    calls = []
    measured = timing.measure(lambda: calls.append(1), CPU, budget_s)
    assert measured.repetitions == repetitions
    assert len(calls) == repetitions + 1
    assert 0 <= measured.p20_ms <= measured.median_ms <= measured.p80_ms


def test_nothing_is_recorded_for_gradients():
    weight = torch.ones(2, requires_grad=True)
    results = []
    timing.measure(lambda: results.append(weight * 2), CPU, 0.0)
    assert not any(result.requires_grad for result in results)


def test_copy_bandwidth():
    assert timing.copy_bandwidth(CPU) > 0


def test_a_time_limit_gets_through_handlers():
    """Compilers catch every Exception and go on by another way."""
    with pytest.raises(timing.TimeUp, match="not done within 0 s"), timing.time_limit(0.02):
        try:
            time.sleep(5)
        except Exception:
            pytest.fail("caught on the way")
    time.sleep(0.03)  # the alarm is off


def test_memory_on_the_cpu_is_unknown():
    assert timing.peak_memory(lambda: None, CPU, total=True) is None


@pytest.mark.gpu
def test_events_and_memory_on_a_gpu():
    device = torch.device("cuda")
    x = torch.randn(1024, 1024, device=device)
    assert timing.measure(lambda: x @ x, device, 0.1).median_ms > 0
    assert timing.peak_memory(lambda: x + 1, device, total=False) >= x.numel() * 4
    assert timing.copy_bandwidth(device) > 1e10
