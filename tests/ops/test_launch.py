"""The short way to a compiled kernel, with Triton's own function around a launcher that notes."""

from types import SimpleNamespace

import pytest
import torch

from viditq.ops.launch import Described, _short_way

driver = pytest.importorskip("triton.backends.nvidia.driver")
gluon = pytest.importorskip("triton.experimental.gluon.nvidia.hopper")

META = {"swizzle": 3, "elem_size": 1, "elem_type": 0, "block_size": [128, 64], "fp4_padded": False}


@pytest.fixture
def encoded(monkeypatch):
    """What descriptors are encoded of, and how often."""
    calls = []

    def fill(pointer, *rest):
        calls.append(pointer)
        return f"map of {pointer}", rest

    utils = SimpleNamespace(fill_tma_descriptor=fill, fill_tma_descriptor_tiled=fill)
    active = SimpleNamespace(driver=SimpleNamespace(active=SimpleNamespace(utils=utils)))
    monkeypatch.setattr(driver, "triton", SimpleNamespace(runtime=active))
    return calls


def described(*, residual):
    from viditq.ops.int8_linear.hopper import _described

    _described.cache_clear()
    return _described((256, 128, 192), 64, torch.bfloat16, 1600, 3200, 4800, residual)


def wrapped(launcher, described):
    """As Triton wraps ``launcher`` for a kernel of these descriptors and two other arguments."""
    kinds = ["constexpr" if d is None else "tensordesc<x>" for d in described.descriptors]
    signature = dict(enumerate([*kinds, "*fp32", "i32"]))
    metas = [META for kind in kinds if kind != "constexpr"]
    return driver.wrap_handle_tensordesc(launcher, signature, metas)


@pytest.mark.parametrize("residual", [None, 6400])
def test_the_launcher_gets_what_it_did(encoded, residual):
    """Through Triton's wrapper and past it; the descriptors are encoded once for all launches."""
    seen = []
    given = described(residual=residual)
    run = SimpleNamespace(launch=wrapped(lambda *arguments: seen.append(arguments), given))
    base = getattr(driver, "_BASE_ARGS_FORMAT_LEN", None)
    flat = (
        base is not None
    )  # Triton 3.6 hands over all arguments one by one, 3.7 the kernel's as one
    front = ("grid",) * (base or 3)

    def call(run, kernel_arguments):
        run.launch(*front, *(kernel_arguments if flat else [kernel_arguments]))

    call(run, (*given.descriptors, "pointer", 7))
    short, expand, wanted = _short_way(run)
    assert short is not run and expand is driver.make_tensordesc_arg
    encoded.clear()
    for _ in range(3):
        call(short, [*given.expanded(expand, wanted), "pointer", 7])
    assert encoded == [1600, 3200, 4800] + [6400] * (residual is not None)
    assert seen[1:] == [seen[0]] * 3


def test_another_kernel_has_expansions_of_its_own(encoded):
    given, expand = described(residual=None), driver.make_tensordesc_arg
    first, second = (META, META, META), tuple([META] * 3)
    made = given.expanded(expand, first)
    assert given.expanded(expand, first) is made and len(encoded) == 3
    assert given.expanded(expand, second) == made and len(encoded) == 6


def test_a_triton_of_another_kind_keeps_its_launcher():
    run = SimpleNamespace(launch=lambda *_: None)
    assert _short_way(run) == (run, None, ())
    run = SimpleNamespace(launch=print)
    assert _short_way(run) == (run, None, ())


def test_nothing_described():
    assert Described().descriptors == () == Described().kinds
