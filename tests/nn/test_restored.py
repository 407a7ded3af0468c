"""A restored layer is the quantized one with activations that nobody rounds."""

import pytest
import torch
from torch import nn

from synthetic import statistics, tokens
from viditq.convert import balance_for, quantize_readers
from viditq.nn import Fp8Linear, QuantLinear, RestoredLinear, SimulatedLinear
from viditq.ops import balance_rows
from viditq.plan import LayerPlan

K, N = 36, 8
PLANS = {
    "int8": LayerPlan(),
    "int6": LayerPlan(weight="int6", activation="int6", smooth=0.5),
    "int4": LayerPlan(weight="int4", smooth=0.5, hadamard=4, bias_correction=True),
    "rotated": LayerPlan(hadamard=4),
    "static": LayerPlan(granularity="tensor", smooth=0.5, hadamard=4),
    "centered": LayerPlan(center=True, profile="rms", smooth=0.5, hadamard=4),
    "centered branch": LayerPlan(weight="int4", rank=3, center=True, hadamard=4),
    "fp8": LayerPlan(weight="fp8", activation="fp8", smooth=0.5, hadamard=4),
    "branch": LayerPlan(weight="int4", rank=3, smooth=0.5, hadamard=4),
    "zero point": LayerPlan(weight="int4", zero_point=True, smooth=0.5, hadamard=4),
    "groups": LayerPlan(weight="int4", group=16, zero_point=True, rank=2),
}


@pytest.fixture(params=PLANS)
def plan(request):
    return PLANS[request.param]


def made(plan, *, bias=True) -> tuple[nn.Linear, QuantLinear, torch.Tensor]:
    x = tokens(K)
    linear, stats = nn.Linear(K, N, bias=bias), statistics(x)
    layer = quantize_readers([linear], [plan], balance_for([plan], [linear], stats), stats)[0]
    return linear, layer, x


def without_rounding(layer: QuantLinear, x: torch.Tensor) -> torch.Tensor:
    """What the layer's formula gives for its own codes and for activations as they are, fp64."""
    balanced = balance_rows(x, layer.smooth, layer.hadamard, layer.center).double()
    y = balanced @ layer.dequantized().double().T
    if isinstance(layer, SimulatedLinear) and layer.down is not None and layer.up is not None:
        y = y + balanced @ layer.down.double().T @ layer.up.double().T
    return y if layer.bias is None else y + layer.bias.double()


@pytest.mark.parametrize("bias", [True, False])
def test_in_fp32_it_is_the_formula(plan, bias):
    _, layer, x = made(plan, bias=bias)
    expected = without_rounding(layer, x)
    y = RestoredLinear(layer, torch.float32)(x)
    torch.testing.assert_close(
        y.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_it_is_as_near_as_a_float_layer_would_be(plan, dtype):
    _, layer, x = made(plan)
    exact, x = without_rounding(layer, x.to(dtype).float()), x.to(dtype)
    restored = RestoredLinear(layer, dtype)
    assert {parameter.dtype for parameter in restored.parameters()} == {dtype}
    error = (restored(x).double() - exact).norm() / exact.norm()
    assert error < torch.finfo(dtype).eps


def test_it_makes_what_the_layers_made(plan):
    """``without_rounding`` might be wrong as the weight is; these two know nothing of it."""
    linear, layer, x = made(plan)
    restored = RestoredLinear(layer, torch.float32)
    exact = linear(x)
    assert (restored(x) - layer(x)).norm() < 0.15 * exact.norm()
    assert (restored(x) - exact).norm() < 1.05 * (layer(x) - exact).norm()


def test_kinds_of_layers_are_covered():
    kinds = {type(made(plan)[1]) for plan in PLANS.values()}
    assert kinds == {QuantLinear, SimulatedLinear, Fp8Linear}


def test_is_a_linear_layer_of_its_own():
    _, layer, _ = made(PLANS["int4"])
    restored = RestoredLinear(layer, torch.bfloat16)
    assert isinstance(restored, nn.Linear)
    assert not isinstance(restored, QuantLinear)
    assert restored.size_bytes == 2 * N * K
    assert "in_features=36, out_features=8" in repr(restored)
    before = layer.get_parameter("bias").clone()
    restored.get_parameter("bias").data.zero_()
    assert torch.equal(layer.get_parameter("bias"), before)
