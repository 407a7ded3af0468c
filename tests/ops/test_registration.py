"""Which implementation of an op runs: chosen by the chip, or asked for."""

import pytest
import torch

from viditq.ops import fastest_backend, registration, use_backend

CUDA = torch.device("cuda:0")
INT8, ROWS = "viditq.ops.int8_linear", "viditq.ops.quantize_rows"


@pytest.fixture
def on_chip(monkeypatch):
    """A chip of this compute capability, as far as the choice can tell."""
    pytest.importorskip("triton")

    def pretend(*capability):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        registration._implementations.cache_clear()

    yield pretend
    registration._implementations.cache_clear()


def test_the_fastest_there(on_chip):
    assert fastest_backend(torch.device("cpu")) == "reference"
    on_chip(9, 0)
    assert fastest_backend(CUDA) == "hopper"
    on_chip(8, 6)
    assert fastest_backend(CUDA) == "triton"


def test_what_is_asked_for_and_all_slower(on_chip):
    on_chip(9, 0)
    assert registration._order(CUDA, INT8, "hopper") == ("hopper", "triton")
    assert registration._order(CUDA, ROWS, "hopper") == ("triton",)  # has no other
    assert registration._order(CUDA, INT8, "triton") == ("triton",)
    assert registration._order(CUDA, INT8, "reference") == ()


def test_what_the_chip_cannot_run(on_chip):
    on_chip(8, 0)
    wanted = "cuda:0 cannot run the hopper backend, only triton, reference"
    with pytest.raises(RuntimeError, match=wanted):
        registration._order(CUDA, INT8, "hopper")


def test_no_such_backend():
    with pytest.raises(ValueError, match="hopper, triton, reference, not 'cutlass'"):
        use_backend("cutlass").__enter__()


def test_what_wants_a_gradient_goes_through_the_dispatcher():
    """Which warns that there is none, instead of losing it without a word."""
    x, scale = torch.ones(2, 4), torch.ones(2, requires_grad=True)
    assert registration._is_watched(x, (None, scale, 8))
    assert not registration._is_watched(x, (None, scale.detach(), 8))
    with torch.no_grad():
        assert not registration._is_watched(x, (None, scale, 8))
