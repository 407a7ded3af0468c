"""In fp32 a product of several layers, with gate and residual, is the layers' own, bit by bit."""

import pytest
import torch
from diffusers.models.normalization import FP32LayerNorm

from viditq.blocks.inputs import Gelu, Modulated, ModulatedInFp32, Plain
from viditq.blocks.products import finish, read
from viditq.plan import LayerPlan

PLANS = {
    "int8": LayerPlan(smooth=0.5, hadamard=16),
    "int6": LayerPlan(weight="int6", activation="int6", smooth=0.5, hadamard=16),
    "int4": LayerPlan(weight="int4", smooth=0.5),
    "centered": LayerPlan(center=True, profile="rms", smooth=0.5, hadamard=16),
    "static": LayerPlan(granularity="tensor", smooth=0.5, hadamard=16),
}


@pytest.fixture(params=PLANS)
def block(make_block, request):
    return make_block(PLANS[request.param])


def test_shared_input(block):
    x = torch.randn(2, 7, 32)
    layers = [block.attn1.to_q, block.attn1.to_k, block.attn1.to_v]
    for y, layer in zip(read(Plain(x), layers), layers, strict=True):
        assert torch.equal(y, layer(x))


@pytest.mark.parametrize("gated", [None, (2, 1), (2, 7)])
def test_gate_and_residual(block, gated):
    """One gate for a sample, or for every token a view of its modulation."""
    x, residual, layer = torch.randn(2, 7, 32), torch.randn(2, 7, 32), block.attn1.to_out[0]
    gate = None if gated is None else torch.randn(*gated, 6, 32)[..., 2, :]
    given = gate[:, 0] if gated == (2, 1) else gate
    y = finish(Plain(x), layer, residual, given)
    assert torch.equal(y, (layer(x) if gate is None else gate * layer(x)) + residual)


def test_gate_of_a_float_layer_may_be_wider_than_the_result():
    x, residual = torch.randn(2, 7, 32).bfloat16(), torch.randn(2, 7, 32).bfloat16()
    layer, gate = torch.nn.Linear(32, 32, dtype=torch.bfloat16), torch.randn(2, 32)
    expected = (residual.float() + gate[:, None] * layer(x)).bfloat16()
    assert torch.equal(finish(Plain(x), layer, residual, gate), expected)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(block, approximate):
    x, layer = Gelu(torch.randn(2, 7, 128), approximate), block.ff.net[2]
    residual = torch.randn(2, 7, 32)
    assert torch.equal(finish(x, layer, residual), layer(x.values()) + residual)


@pytest.mark.parametrize("kind", [Modulated, ModulatedInFp32])
@pytest.mark.parametrize("shape", [None, (2, 32), (2, 7, 32)])
def test_modulated_norm(block, kind, shape):
    """Here the sums have another order: one code may flip."""
    modulation = () if shape is None else (torch.randn(shape), torch.randn(shape))
    x = kind(torch.randn(2, 7, 32), block.norm1, *modulation)
    (y,) = read(x, [block.attn1.to_q])
    torch.testing.assert_close(y, block.attn1.to_q(x.values()), rtol=1e-5, atol=1e-5)


def test_modulated_norm_in_fp32_is_rounded_once():
    x, gain, shift = torch.randn(2, 7, 32).bfloat16(), torch.randn(2, 32), torch.randn(2, 32)
    values = ModulatedInFp32(x, FP32LayerNorm(32), gain, shift).values()
    y = torch.nn.functional.layer_norm(x.float(), (32,)) * (1 + gain[:, None]) + shift[:, None]
    assert torch.equal(values, y.bfloat16())


def test_no_tokens(block):
    x = torch.randn(2, 0, 32)
    assert read(Plain(x), [block.attn1.to_q])[0].shape == (2, 0, 32)
    assert finish(Plain(x), block.attn1.to_out[0], x, torch.randn(2, 32)).shape == (2, 0, 32)
