"""Each method of the literature has, on a case made for it, the property it is known for."""

import pytest
import torch
from torch import nn

from synthetic import statistics
from viditq.balancing import salience_profile
from viditq.convert import balance_for, quantize_readers
from viditq.diagnostics import sqnr_db
from viditq.plan import LayerPlan
from viditq.recipe import load_recipe

K, N = 64, 32


def layer_of(method: str, linear: nn.Linear, x: torch.Tensor, bits: str = "w8a8"):
    plan = load_recipe(f"{bits}-{method}").resolve({"layer": "ffn.up"})["layer"][0]
    stats = statistics(x)
    return quantize_readers([linear], [plan], balance_for([plan], [linear], stats), stats)[0]


def output_db(method: str, linear: nn.Linear, x: torch.Tensor, bits: str = "w8a8") -> float:
    found = sqnr_db(layer_of(method, linear, x, bits)(x), linear(x))
    assert found is not None
    return found


@pytest.fixture
def linear():
    return nn.Linear(K, N)


def loud_channel(times: float) -> torch.Tensor:
    x = torch.randn(400, K)
    x[:, 5] *= times
    return x


def loud_token(times: float) -> torch.Tensor:
    x = torch.randn(400, K)
    x[7] *= times
    return x


def test_naive_has_one_scale_that_a_loud_token_spoils(linear):
    assert (
        output_db("naive", linear, loud_token(1)) - output_db("naive", linear, loud_token(50)) > 0
    )
    quiet = loud_token(50)[20:]
    spoiled, alone = layer_of("naive", linear, loud_token(50)), layer_of("naive", linear, quiet)
    assert spoiled.input_scale > 10 * alone.input_scale


def test_dynamic_gives_each_token_its_own(linear):
    x = loud_token(50)
    layer = layer_of("dynamic", linear, x)
    torch.testing.assert_close(layer(x[20:]), layer(x)[20:])
    rest = [i for i in range(400) if i != 7]
    error = (layer(x) - linear(x))[rest].norm() / linear(x)[rest].norm()
    assert error < 0.02


def test_smoothquant_moves_half_of_a_loud_channel_into_the_weight(linear):
    x = loud_channel(100)
    layer = layer_of("smoothquant", linear, x)
    ratio = (x / layer.smooth).abs().amax(0) / (linear.weight * layer.smooth).abs().amax(0)
    torch.testing.assert_close(ratio / ratio.mean(), torch.ones(K), rtol=1e-4, atol=0)
    assert output_db("smoothquant", linear, x) > output_db("dynamic", linear, x) + 6


def test_quarot_spreads_a_loud_channel_over_all(linear):
    x = loud_channel(100)
    layer = layer_of("quarot", linear, x)
    assert layer.hadamard == K
    assert torch.equal(layer.smooth.abs(), torch.ones(K))  # signs, no scaling
    assert output_db("quarot", linear, x) > output_db("dynamic", linear, x) + 6


def test_qdit_keeps_a_loud_channel_in_its_group():
    wide = nn.Linear(512, N)
    x = torch.randn(400, 512)
    x[:, 5] *= 200
    layer = layer_of("qdit", wide, x)
    assert layer.scale.shape == (N, 4)
    assert output_db("qdit", wide, x) > output_db("dynamic", wide, x) + 3


def test_ptq4dit_looks_where_activation_and_weight_disagree():
    weight = torch.arange(1.0, 9.0)
    agreeing, opposed = weight.clone(), weight.flip(0)
    profile = salience_profile(torch.stack([agreeing, opposed]), weight)
    shares = torch.linalg.lstsq(torch.stack([agreeing, opposed], 1), profile[:, None]).solution
    # Spearman's rho is 1 and -1: weights e⁻¹ and e, normalized.
    e = torch.tensor(1.0).exp()
    torch.testing.assert_close(shares.flatten(), torch.stack([1 / e, e]) / (e + 1 / e))


def test_ptq4dit_is_static_with_a_zero_point(linear):
    layer = layer_of("ptq4dit", linear, loud_channel(30) + 3)
    assert layer.input_scale.shape == layer.input_offset.shape == ()
    assert layer.smooth is not None


def test_qdiffusion_gives_up_the_tail_of_the_activations(linear):
    x = torch.randn(400, K) ** 5
    searched = layer_of("qdiffusion", linear, x, "w4a4").input_scale
    plan = LayerPlan(weight="int4", activation="int4", granularity="tensor", zero_point=True)
    stats = statistics(x)
    largest = quantize_readers([linear], [plan], balance_for([plan], [linear], stats), stats)[0]
    assert searched < 0.9 * largest.input_scale


def test_svdquant_takes_the_largest_directions_out_of_the_integers():
    linear = nn.Linear(K, K)
    with torch.no_grad():
        linear.weight += 4 * torch.outer(torch.randn(K), torch.randn(K)) / K**0.5
    x = torch.randn(400, K)
    layer = layer_of("svdquant", linear, x, "w4a8")
    assert (layer.down.shape, layer.up.shape) == ((4, K), (K, 4))
    assert layer.dequantized().abs().max() < 0.5 * linear.weight.abs().max()
    assert output_db("svdquant", linear, x, "w4a8") > output_db("dynamic", linear, x, "w4a8") + 3


def test_fp8_does_not_mind_a_loud_channel_and_never_gets_better_than_its_three_bits(linear):
    loud, even = loud_channel(100), loud_channel(1)
    assert output_db("fp8", linear, loud) > 25
    assert output_db("fp8", linear, even) < output_db("dynamic", linear, even)
