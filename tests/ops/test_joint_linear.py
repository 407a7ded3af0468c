"""Several layers as one product: what the single ones give, wherever their weights lie."""

import pytest
import torch

from viditq.ops import int4_linear, int8_linear, joint_linear, pack_int4

SIZES = (3, 5, 1)


def layers(packed: bool, together: bool):
    """Weights, scales and biases of three layers, in one allocation each or in three."""
    weights = torch.randint(-7, 8, (sum(SIZES), 24), dtype=torch.int8)
    weights = pack_int4(weights) if packed else weights
    scales, biases = torch.rand(sum(SIZES)) + 0.1, torch.randn(sum(SIZES))
    parts = [tensor.split(SIZES) for tensor in (weights, scales, biases)]
    return parts if together else [[part.clone() for part in each] for each in parts]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_is_the_layers_side_by_side(packed, together):
    weights, scales, biases = layers(packed, together)
    x, x_scale = torch.randint(-127, 128, (6, 24), dtype=torch.int8), torch.rand(6)
    gate, residual = torch.randn(2, 9), torch.randn(6, 9)
    single = int4_linear if packed else int8_linear
    y = joint_linear(x, x_scale, weights, scales, biases, packed=packed)
    parts = zip(weights, scales, biases, strict=True)
    expected = torch.cat([single(x, x_scale, *part) for part in parts], 1)
    assert torch.equal(y, expected)
    y = joint_linear(
        x, x_scale, weights, scales, (), torch.bfloat16, packed=packed, gate=gate, residual=residual
    )
    parts = zip(weights, scales, strict=True)
    expected = torch.cat([single(x, x_scale, *part) for part in parts], 1)
    expected = expected * gate.repeat_interleave(3, 0) + residual
    assert torch.equal(y, expected.bfloat16())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rows", [0, 4])
def test_registration(packed, rows):
    weights, scales, biases = layers(packed, together=True)
    x, x_scale = torch.ones(rows, 24, dtype=torch.int8), torch.rand(rows)
    rest = (torch.randn(2, 9), torch.randn(rows, 9), packed, torch.float32)
    arguments = (x, x_scale, list(weights), list(scales), list(biases), *rest)
    torch.library.opcheck(torch.ops.viditq.joint_linear.default, arguments)


def test_wrong_arguments():
    weights, scales, biases = layers(False, together=True)
    x = torch.ones(2, 24, dtype=torch.int8)
    with pytest.raises(ValueError, match="3 weights have 2 scales and 3 biases"):
        joint_linear(x, torch.ones(2), weights, scales[:2], biases)
    with pytest.raises(ValueError, match="3 weights have 3 scales and 1 biases"):
        joint_linear(x, torch.ones(2), weights, scales, biases[:1])
