"""In fp32 a product of several layers, with gate and residual, is the layers' own, bit by bit."""

import pytest
import torch

from viditq.blocks.inputs import Gelu, Modulated, Plain
from viditq.blocks.products import finish, read
from viditq.plan import LayerPlan

PLANS = {
    "int8": LayerPlan(smooth=0.5, hadamard=16),
    "int6": LayerPlan(weight="int6", activation="int6", smooth=0.5, hadamard=16),
    "int4": LayerPlan(weight="int4", smooth=0.5),
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


@pytest.mark.parametrize("gated", [True, False])
def test_gate_and_residual(block, gated):
    x, residual = torch.randn(2, 7, 32), torch.randn(2, 7, 32)
    layer, gate = block.attn1.to_out[0], torch.randn(2, 32) if gated else None
    y = finish(Plain(x), layer, residual, gate)
    assert torch.equal(y, (layer(x) if gate is None else gate[:, None] * layer(x)) + residual)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(block, approximate):
    x, layer = Gelu(torch.randn(2, 7, 128), approximate), block.ff.net[2]
    residual = torch.randn(2, 7, 32)
    assert torch.equal(finish(x, layer, residual), layer(x.values()) + residual)


def test_modulated_norm(block):
    """Here the sums have another order: one code may flip."""
    x = Modulated(torch.randn(2, 7, 32), block.norm1, torch.randn(2, 32), torch.randn(2, 32))
    (y,) = read(x, [block.attn1.to_q])
    torch.testing.assert_close(y, block.attn1.to_q(x.values()), rtol=1e-5, atol=1e-5)


def test_no_tokens(block):
    x = torch.randn(2, 0, 32)
    assert read(Plain(x), [block.attn1.to_q])[0].shape == (2, 0, 32)
    assert finish(Plain(x), block.attn1.to_out[0], x, torch.randn(2, 32)).shape == (2, 0, 32)
