"""``TrainableLinear`` is the quantized layer it was made of, and its gradients are those of it."""

import copy

import pytest
import torch
from torch import nn

from viditq.nn import QuantLinear, TrainableLinear
from viditq.plan import LayerPlan
from viditq.quantizers import pack

PLANS = {
    "int4": LayerPlan(weight="int4", smooth=0.5, hadamard=16),
    "tcq4": LayerPlan(weight="tcq4", smooth=0.5, hadamard=16, rounding="gptq"),
    "plain": LayerPlan(),
    "centered": LayerPlan(center=True, profile="rms", smooth=0.5, hadamard=16),
}
CODES = pytest.mark.parametrize("codes", [True, False], ids=["codes learn", "codes stay"])
EVERY = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def layer_of(plan: LayerPlan, n: int = 5, k: int = 32) -> QuantLinear:
    layer = QuantLinear(k, n, True, plan)
    layer.weight.data = pack(torch.randint(-7, 8, (n, k), dtype=torch.int8), plan.weight_format)
    layer.scale.data = torch.rand(n) / 100 + 0.01
    layer.bias.data = torch.randn(n)
    if layer.smooth is not None:
        layer.smooth.data = (torch.rand(k) + 0.5) * (torch.randint(0, 2, (k,)) * 2 - 1)
    if layer.center is not None:
        layer.center.data = torch.randn(k).to(layer.center.dtype)
    return layer


@EVERY
@CODES
def test_begins_as_the_layer_and_writes_it_back(plan, codes):
    layer = layer_of(plan)
    before = copy.deepcopy(layer.state_dict())
    trained, x = TrainableLinear(layer, torch.randn(5, 32), codes=codes), torch.randn(3, 7, 32)
    torch.testing.assert_close(trained(x), layer(x))
    weight = layer.dequantized()
    assert trained.write_() is layer
    assert torch.equal(layer.dequantized(), weight)
    for name, tensor in layer.state_dict().items():
        if name != "weight":  # trellis codes may be others that stand for the same
            torch.testing.assert_close(tensor, before[name])


@EVERY
@CODES
def test_what_was_learned_is_written(plan, codes):
    layer, x = layer_of(plan), torch.randn(9, 32)
    trained, before = TrainableLinear(layer, torch.randn(5, 32), codes=codes), layer.weight.clone()
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            parameter += torch.randn_like(parameter) / (2 if name == "latent" else 50)
        trained.keep_in_range_()
        expected = trained(x)
        torch.testing.assert_close(trained.write_()(x), expected)
    assert torch.equal(layer.weight, before) == (not codes)


@EVERY
def test_gradients_are_those_of_the_layer_without_rounding(plan):
    """Of scales, smoothing and biases; rounding is passed straight through."""
    layer = layer_of(plan)
    trained = TrainableLinear(layer, torch.randn(5, 32))
    x, wanted = torch.randn(200, 32), torch.randn(200, 5)
    (trained(x) * wanted).sum().backward()
    weight, r = layer.dequantized().double(), torch.zeros(5).double().requires_grad_()
    t, u = torch.zeros(5).double().requires_grad_(), torch.zeros(32).double().requires_grad_()
    rows = x.double() if layer.center is None else x.double() - layer.center.double()
    if layer.smooth is not None:
        from viditq.ops import block_hadamard

        rows = block_hadamard(rows / (layer.smooth * (1 + u)), layer.hadamard)
    y = nn.functional.linear(rows, weight * (1 + r)[:, None], layer.bias + trained.unit * t)
    (y * wanted).sum().backward()
    near = {"rtol": 0.05, "atol": 0.02 * float(r.grad.abs().max()), "check_dtype": False}
    torch.testing.assert_close(trained.scale_change.grad, r.grad, **near)
    torch.testing.assert_close(trained.bias_change.grad, t.grad, **near)
    if layer.smooth is not None:
        torch.testing.assert_close(trained.smooth_change.grad, u.grad, **near)


@EVERY
def test_a_latent_weight_has_the_gradient_of_its_weight(plan):
    trained, x = TrainableLinear(layer_of(plan), torch.randn(5, 32)), torch.randn(9, 32)
    steps = []

    def watched() -> torch.Tensor:
        steps.append(own())
        steps[0].retain_grad()
        return steps[0]

    own, trained.steps = trained.steps, watched
    trained(x).square().sum().backward()
    unit = 160 if plan.weight == "tcq4" else 1
    torch.testing.assert_close(trained.latent.grad, unit * steps[0].grad)


def test_codes_that_stay_are_not_asked_for():
    trained = TrainableLinear(layer_of(PLANS["tcq4"]), torch.randn(5, 32), codes=False)
    assert trained.latent is None
    with pytest.raises(ValueError, match="stay as they are"):
        trained.codes()


def test_a_given_smoothing_is_shared():
    first, second = layer_of(PLANS["int4"]), layer_of(PLANS["int4"])
    one = TrainableLinear(first, torch.randn(5, 32))
    other = TrainableLinear(second, torch.randn(5, 32), one.smooth_change)
    assert other.smooth_change is one.smooth_change
