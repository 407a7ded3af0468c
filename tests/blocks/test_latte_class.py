"""Fused blocks of Latte for classes: both ways of attending, and what only these blocks have."""

import pytest
import torch

import tiny
from viditq.bench.random_models import quantize_random_
from viditq.blocks import fuse_
from viditq.plan import LayerPlan

B, T, S, C = 2, 3, 5, 32
FUSED = {"norm_quantize": 2, "quantize_rows": 1, "gelu_quantize": 1, "int8_linear": 4}


@pytest.fixture(params=["transformer_blocks", "temporal_transformer_blocks"])
def block(request):
    model = quantize_random_(tiny.latte_class(), LayerPlan(smooth=0.5, hadamard=16))
    return getattr(model, request.param)[0].requires_grad_(False)


@pytest.fixture
def inputs():
    return {"hidden_states": torch.randn(B, T, S, C), "condition": torch.randn(B, C)}


def distance(a, b):
    return float((a - b).norm() / b.norm())


def run(block, inputs):
    with torch.no_grad():
        return block(**inputs)


def test_is_drop_in(block, inputs, count_ops):
    expected = run(block, inputs)
    assert fuse_(block) == 1
    assert distance(run(block, inputs), expected) <= 1e-5
    assert count_ops(block, **inputs) == FUSED


def test_the_modulation_is_called(block, inputs, count_ops):
    """A hook on it counts, and nothing else of the block minds."""
    fuse_(block)
    before = run(block, inputs)
    block.modulation.register_forward_hook(lambda module, args, y: 2 * y)
    assert distance(run(block, inputs), before) > 1e-3
    assert count_ops(block, **inputs) == FUSED


def test_a_layer_with_a_hook_gets_what_it_would(block, inputs):
    expected = run(block, inputs)
    fuse_(block)
    block.attn1.to_out.register_forward_hook(lambda module, args, y: y)
    assert distance(run(block, inputs), expected) <= 1e-5


def test_one_condition_for_several_samples_is_left_to_the_original(block, inputs, count_ops):
    inputs["condition"] = inputs["condition"][:1]
    expected = run(block, inputs)
    fuse_(block)
    assert torch.equal(run(block, inputs), expected)
    assert "norm_quantize" not in count_ops(block, **inputs)
