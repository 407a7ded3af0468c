"""fp8 layers: torch's 8-bit floats, with the balance of any other layer, never cast."""

import torch
from torch import nn

from synthetic import statistics, tokens
from viditq.convert import balance_for, quantize_readers
from viditq.nn import Fp8Linear
from viditq.plan import LayerPlan

FP8 = {"weight": "fp8", "activation": "fp8"}


def made(plan):
    x = tokens(36)
    linear, stats = nn.Linear(36, 8), statistics(x)
    layer = quantize_readers([linear], [plan], balance_for([plan], [linear], stats), stats)[0]
    return linear, layer, x


def test_three_bits_behind_the_leading_one():
    for plan in (LayerPlan(**FP8), LayerPlan(**FP8, smooth=0.5, hadamard=4)):
        linear, layer, x = made(plan)
        assert type(layer) is Fp8Linear
        assert layer.weight.dtype == torch.float8_e4m3fn
        error = (layer(x) - linear(x)).norm() / linear(x).norm()
        assert 0.005 < error < 0.06


def test_a_cast_leaves_the_codes():
    _, layer, x = made(LayerPlan(**FP8))
    before = layer.weight.clone().view(torch.uint8)
    layer.to(torch.bfloat16)
    assert layer.weight.dtype == torch.float8_e4m3fn
    assert torch.equal(layer.weight.view(torch.uint8), before)
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_eight_bits_and_a_scale_per_channel():
    _, layer, _ = made(LayerPlan(**FP8))
    assert layer.size_bytes == 36 * 8 + 4 * 8
