"""``QuantLinear`` is its formula, for every shape, compiled or not, and keeps its scales."""

import copy

import pytest
import torch
from torch import nn

from viditq.formats import FORMATS
from viditq.nn import FP32_TENSORS, QuantLinear, empty_like
from viditq.ops import block_hadamard, quantize_rows
from viditq.plan import LayerPlan
from viditq.quantizers import levels, pack

# Weights of every format; 8- and 6-bit activations; each transform alone, both, and the baseline.
PLANS = {
    "w8a8": LayerPlan(),
    "w6a6": LayerPlan(weight="int6", activation="int6", smooth=0.5, hadamard=4),
    "w4a8": LayerPlan(weight="int4", smooth=0.5, hadamard=128),
    "tcq": LayerPlan(weight="tcq4", smooth=0.5, hadamard=16, rounding="gptq"),
    "rotated": LayerPlan(hadamard=16),
    "smoothed": LayerPlan(weight="int4", smooth=0.0),
    "centered": LayerPlan(center=True, profile="rms", smooth=0.5, hadamard=4),
    "naive": LayerPlan(granularity="tensor"),
    "static": LayerPlan(granularity="tensor", smooth=0.5, hadamard=4),
}
# 3 × 12: no multiple of 128, of 8, or of the group of int6 in the last case; 7 is odd.
WIDTHS = [36, 128, 7]
EVERY_PLAN = pytest.mark.parametrize("name", PLANS)


def filled(
    plan: LayerPlan, k: int, n: int = 5, bias: bool = True
) -> tuple[QuantLinear, torch.Tensor]:
    """A layer with random contents and what its codes stand for, (N, K) in steps of the scale."""
    layer, fmt = QuantLinear(k, n, bias, plan), plan.weight_format
    codes = torch.randint(fmt.qmin, fmt.qmax + 1, (n, k), dtype=torch.int8)
    layer.weight.data = pack(codes, fmt)
    layer.scale.data = torch.rand(n) / 100 + 1e-3
    if layer.bias is not None:
        layer.bias.data = torch.randn(n)
    if layer.smooth is not None:
        layer.smooth.data = (torch.rand(k) + 0.5) * (torch.randint(0, 2, (k,)) * 2 - 1)
    if layer.center is not None:
        layer.center.data = torch.randn(k).to(layer.center.dtype)
    if layer.input_scale is not None:
        # Its range holds what the tests' smoothing and a rotation make of ±2.5.
        layer.input_scale.data = torch.tensor(0.02 if layer.smooth is None else 0.04)
    return layer, levels(codes, fmt)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", WIDTHS)
@EVERY_PLAN
def test_is_its_formula(name, k, dtype):
    """``y = ((x - c) / s) H · Ŵ'ᵀ + b`` in fp64, on the codes that the input gets."""
    plan = PLANS[name]
    layer, codes = filled(plan, k)
    layer.bias.data = layer.bias.data.to(dtype)
    x = torch.randn(3, 17, k).to(dtype)
    rows, bits = x.reshape(-1, k), plan.activation_format.bits
    x_codes, x_scale = quantize_rows(
        rows, layer.smooth, layer.hadamard, bits, layer.input_scale, layer.center
    )
    dequantized = x_codes.double() * x_scale.double().reshape(-1, 1)
    y = dequantized @ (codes.double() * layer.scale.double()[:, None]).T + layer.bias.double()
    result = layer(x)
    assert result.dtype == dtype
    assert result.shape == (3, 17, 5)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(
        result.double(), y.reshape(3, 17, 5), rtol=tolerance, atol=tolerance * 1e-1
    )


@pytest.mark.parametrize("k", WIDTHS)
@EVERY_PLAN
def test_is_near_the_float_layer_it_stands_for(name, k):
    """The transforms cancel: undone on the weight, the layer is a float one plus rounding."""
    plan = PLANS[name]
    layer, codes = filled(plan, k)
    weight = codes.double() * layer.scale.double()[:, None]
    weight = block_hadamard(weight, layer.hadamard)  # its own inverse
    if layer.smooth is not None:
        weight = weight / layer.smooth.double()
    x = torch.randn(64, k).clamp(-2.5, 2.5)  # inside the range of the static scale
    shifted = x if layer.center is None else x - layer.center.float()
    reference = shifted.double() @ weight.T + layer.bias.double()
    relative = (layer(x).double() - reference).norm() / (reference - layer.bias.double()).norm()
    assert relative < {"int8": 0.015, "int6": 0.06}[plan.activation]


@pytest.mark.parametrize("shape", [(36,), (1, 36), (17, 36), (2, 3, 4, 36), (0, 36), (2, 0, 36)])
@EVERY_PLAN
def test_takes_the_shapes_that_a_float_layer_takes(name, shape):
    layer, _ = filled(PLANS[name], 36)
    x = torch.randn(shape)
    y = layer(x)
    assert y.shape == nn.Linear(36, 5)(x).shape
    if y.numel():
        rows = layer(x.reshape(-1, 36))
        torch.testing.assert_close(y.reshape(-1, 5), rows)


@EVERY_PLAN
def test_takes_views(name):
    layer, _ = filled(PLANS[name], 36)
    x = torch.randn(4, 36, 3).transpose(1, 2)
    assert torch.equal(layer(x), layer(x.contiguous()))


def test_without_a_bias():
    layer, _ = filled(PLANS["w8a8"], 36, bias=False)
    assert layer.bias is None
    zero, _ = filled(PLANS["w8a8"], 36)
    zero.load_state_dict({**layer.state_dict(), "bias": torch.zeros(5)})
    x = torch.randn(3, 36)
    assert torch.equal(layer(x), zero(x))
    # Bias correction needs a place, whether the float layer had one or not.
    corrected = QuantLinear(36, 5, False, LayerPlan(bias_correction=True))
    assert corrected.bias is not None


@EVERY_PLAN
def test_compiles_into_one_graph(name):
    """aot_eager traces through the shape functions of the ops; machine code adds no law."""
    torch.compiler.reset()  # of each class so many kinds can be compiled
    layer, _ = filled(PLANS[name], 36)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=False)
    x = torch.randn(2, 17, 36)
    with torch.inference_mode():
        assert torch.equal(compiled(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@EVERY_PLAN
def test_a_change_of_dtype_leaves_the_numbers_alone(name, dtype):
    layer, _ = filled(PLANS[name], 36)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    moved = nn.Sequential(layer).to(dtype)[0]
    after = moved.state_dict()
    assert set(after) == set(before)
    for key, value in after.items():
        if key == "bias":
            assert value.dtype == dtype
        else:
            assert value.dtype == before[key].dtype
            assert torch.equal(value, before[key])
    assert isinstance(moved, QuantLinear)
    assert moved(torch.randn(3, 36).to(dtype)).dtype == dtype


def test_a_round_trip_through_bf16_is_free_but_for_the_bias():
    layer, _ = filled(PLANS["w4a8"], 36)
    layer.bias.data = layer.bias.data.bfloat16().float()
    x = torch.randn(3, 36)
    before = layer(x)
    assert torch.equal(layer.to(torch.bfloat16).to(torch.float32)(x), before)


def test_moves_to_another_device_and_is_made_there():
    for layer in (
        filled(PLANS["w4a8"], 36)[0].to("meta"),
        empty_like(nn.Linear(36, 5, device="meta"), PLANS["w4a8"]),
    ):
        assert {t.device.type for t in layer.state_dict().values()} == {"meta"}
        assert layer(torch.empty(3, 36, device="meta")).shape == (3, 5)


@EVERY_PLAN
def test_copies_are_their_own(name):
    layer, _ = filled(PLANS[name], 36)
    twin, x = copy.deepcopy(layer), torch.randn(3, 36)
    expected = layer(x)
    layer.scale.data *= 2
    assert torch.equal(twin(x), expected)


@pytest.mark.parametrize("k", WIDTHS)
@EVERY_PLAN
def test_holds_exactly_what_the_plan_asks_for(name, k):
    plan = PLANS[name]
    layer, _ = filled(plan, k)
    rotated = plan.hadamard > 0 and k % 4 == 0
    expected = {"weight", "scale", "bias"}
    expected |= {"smooth"} if plan.smooth is not None or rotated else set()
    expected |= {"center"} if plan.center else set()
    expected |= {"input_scale"} if plan.granularity == "tensor" else set()
    assert set(layer.state_dict()) == expected
    assert (layer.hadamard > 0) == rotated
    assert not any(p.requires_grad for p in layer.parameters())
    assert all(getattr(layer, n).dtype == torch.float32 for n in FP32_TENSORS if n in expected)


@pytest.mark.parametrize("k", WIDTHS)
@EVERY_PLAN
def test_counts_every_stored_byte_but_the_bias(name, k):
    layer, _ = filled(PLANS[name], k)
    stored = {n: t.numel() * t.element_size() for n, t in layer.state_dict().items()}
    assert layer.size_bytes == sum(stored.values()) - stored["bias"]
    assert layer.weight_bits == pytest.approx(8 * layer.size_bytes / (5 * k))
    assert layer.weight_bits > PLANS[name].weight_format.bits


def test_is_what_lora_and_offloading_look_for():
    layer, _ = filled(PLANS["w4a8"], 36)
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features) == (36, 5)
    assert "36 -> 5, int4 x int8 per token" in repr(layer)


def test_a_token_that_is_not_finite_does_not_spread():
    layer, _ = filled(PLANS["w4a8"], 36)
    x = torch.randn(3, 36)
    clean = layer(x)
    x[1, 7] = torch.inf
    y = layer(x)
    assert torch.isnan(y[1]).all()
    assert torch.equal(y[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_weight_format_reaches_the_right_op(fmt):
    """One weight of 1 and the others 0, so that a wrong nibble or byte picks another channel."""
    k = 9
    layer = QuantLinear(k, k, False, LayerPlan(weight=fmt))
    layer.weight.data = pack(torch.eye(k, dtype=torch.int8), layer.plan.weight_format)
    layer.scale.data = torch.ones(k)
    x = torch.arange(1.0, 10.0)[None] * 127 / 9
    torch.testing.assert_close(layer(x), x, rtol=0, atol=0.51)
