"""Fused blocks of Open-Sora, with what its pipelines call them with now and then."""

import pytest
import torch
from torch import nn

import tiny
from viditq.bench.random_models import quantize_random_
from viditq.blocks import fuse_
from viditq.models.stdit3 import STDiT3Block
from viditq.plan import LayerPlan

B, T, S, C, L = 2, 3, 5, 32, 7
FUSED = {"norm_quantize": 2, "quantize_rows": 4, "gelu_quantize": 1, "int8_linear": 7}


@pytest.fixture(params=["spatial", "temporal"])
def block(request):
    model = quantize_random_(tiny.stdit3(), LayerPlan(smooth=0.5, hadamard=16))
    lists = {"spatial": model.transformer_blocks, "temporal": model.temporal_transformer_blocks}
    return lists[request.param][0].requires_grad_(False)


@pytest.fixture
def inputs(request):
    angles = torch.rand(T, 8) if "temporal" in request.node.name else None
    return {
        "hidden_states": torch.randn(B, T, S, C),
        "modulation": torch.randn(B, T, 6, C) / 2,
        "encoder_hidden_states": torch.randn(B, L, C),
        "mask": torch.arange(L).expand(B, -1) < torch.tensor([[4], [7]]),
        "angles": angles,
    }


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def run(block: nn.Module, inputs: dict) -> torch.Tensor:
    with torch.no_grad():
        return block(**inputs)


@pytest.mark.parametrize("without_mask", [False, True])
def test_a_timestep_for_each_frame(block, inputs, count_ops, without_mask):
    """As for videos some frames of which are given."""
    if without_mask:
        inputs["mask"] = None
    expected = run(block, inputs)
    assert fuse_(block) == 1
    assert distance(run(block, inputs), expected) <= 1e-5
    assert count_ops(block, **inputs) == FUSED


def test_tokens_that_do_not_lie_in_order(block, inputs, count_ops):
    """As those behind the embedding of patches."""
    turned = inputs["hidden_states"].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not turned.is_contiguous()
    inputs["hidden_states"] = turned
    expected = run(block, inputs)
    fuse_(block)
    assert distance(run(block, inputs), expected) <= 1e-5
    assert count_ops(block, **inputs) == FUSED


def test_one_modulation_for_several_samples_is_left_to_the_original(block, inputs, count_ops):
    inputs["modulation"] = inputs["modulation"][:1]
    expected = run(block, inputs)
    fuse_(block)
    assert isinstance(block, STDiT3Block)
    assert torch.equal(run(block, inputs), expected)
    assert "norm_quantize" not in count_ops(block, **inputs)
