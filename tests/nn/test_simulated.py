"""Simulated layers compute what their tensors say, and store the bits that they claim."""

import pytest
import torch
from torch import nn

from synthetic import statistics, tokens
from viditq.convert import balance_for, quantize_readers
from viditq.formats import INT4, INT8
from viditq.nn import QuantLinear, SimulatedLinear, empty_like
from viditq.plan import LayerPlan
from viditq.quantizers import fake_quantize, unpack

PLANS = {
    "groups": LayerPlan(weight="int4", group=16),
    "zero points": LayerPlan(weight="int4", zero_point=True),
    "groups with zero points": LayerPlan(weight="int4", group=16, zero_point=True),
    "static zero point": LayerPlan(granularity="tensor", zero_point=True, clip=True),
    "branch": LayerPlan(weight="int4", rank=3, smooth=0.5, hadamard=4),
    "all": LayerPlan(weight="int6", rank=3, group=16, zero_point=True, rounding="gptq"),
}
EVERY_PLAN = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
K, N = 36, 8


def made(plan, x=None) -> tuple[nn.Linear, QuantLinear, torch.Tensor]:
    """A float layer, the same quantized, and the tokens it was calibrated with."""
    x = tokens(K) if x is None else x
    linear, stats = nn.Linear(K, N), statistics(x)
    layer = quantize_readers([linear], [plan], balance_for([plan], [linear], stats), stats)[0]
    return linear, layer, x


@EVERY_PLAN
def test_near_the_float_layer(plan):
    linear, layer, x = made(plan)
    assert type(layer) is SimulatedLinear
    y, reference = layer(x), linear(x)
    assert y.shape == reference.shape
    assert (y - reference).norm() < 0.2 * reference.norm()
    assert layer(x[None].bfloat16()).dtype == torch.bfloat16


def test_tokens_are_quantized_each_on_its_own():
    plan = PLANS["groups with zero points"]
    _, layer, x = made(plan)
    expected = fake_quantize(x, INT8, group=16, zero_point=True) @ layer.dequantized().T
    torch.testing.assert_close(layer(x), expected + layer.bias)
    torch.testing.assert_close(layer(x[:1]), layer(x)[:1])


def test_a_branch_reads_the_input_that_is_not_quantized():
    """SVDQuant's: 16 bits in, 16 bits out, beside the integers."""
    _, layer, x = made(LayerPlan(weight="int4", rank=2))
    branch = x @ layer.down.float().T @ layer.up.float().T
    without = fake_quantize(x, INT8) @ layer.dequantized().T + layer.bias
    torch.testing.assert_close(layer(x), without + branch)


def test_a_static_zero_point_holds_what_calibration_saw():
    x = torch.rand(200, K) * torch.rand(K) + 2.0
    _, layer, x = made(LayerPlan(granularity="tensor", zero_point=True), x)
    step = layer.input_scale.item()
    assert step == pytest.approx(x.max().item() / 255, rel=0.02)
    assert (layer._quantized(x) - x).abs().max() <= step * (1 + 1e-4)


@EVERY_PLAN
def test_stores_the_bits_it_claims(plan):
    _, layer, _ = made(plan)
    rows = -(-K // plan.group) if plan.group else 1
    expected = N * plan.weight_format.row_bytes(K) + 4 * N * rows * (1 + plan.zero_point)
    expected += 2 * plan.rank * (N + K)
    expected += 4 * K * (layer.smooth is not None)
    expected += 4 * (plan.granularity == "tensor") * (1 + plan.zero_point)
    assert layer.size_bytes == expected


@EVERY_PLAN
def test_a_cast_leaves_the_numbers(plan):
    _, layer, _ = made(plan)
    before = {name: tensor.clone() for name, tensor in layer.named_parameters() if name != "bias"}
    layer.to(torch.float16)
    for name, tensor in before.items():
        assert torch.equal(layer.get_parameter(name), tensor)
        assert layer.get_parameter(name).dtype == tensor.dtype


def test_an_empty_layer_has_the_tensors_of_a_full_one():
    for plan in PLANS.values():
        linear, layer, _ = made(plan)
        empty = empty_like(linear.to("meta"), plan)
        assert {n: t.shape for n, t in empty.named_parameters()} == {
            n: t.shape for n, t in layer.named_parameters()
        }


def test_rounding_by_gptq_costs_less_than_to_the_nearest_with_groups_too():
    for group in (0, 16):
        errors = []
        for rounding in ("nearest", "gptq"):
            plan = LayerPlan(weight="int4", zero_point=True, group=group, rounding=rounding)
            torch.manual_seed(0)
            linear, layer, x = made(plan)
            error = x @ (layer.dequantized() - linear.weight).T
            errors.append(error.square().mean().item())
        assert errors[1] < 0.7 * errors[0]


def test_codes_are_packed_as_everywhere():
    _, layer, _ = made(PLANS["groups"])
    assert unpack(layer.weight, INT4, K).shape == (N, K)
