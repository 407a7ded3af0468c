"""Conversion: balance, round once, correct the mean; nothing else changes."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

import tiny
from checks import refuses
from synthetic import statistics, tokens
from viditq.balancing import make_balance, static_profile
from viditq.convert import (
    balance_for,
    group_layers,
    output_sqnr_db,
    quantize_,
    quantize_readers,
)
from viditq.errors import CalibrationError, PipelineError, PlanError
from viditq.models import adapter_for
from viditq.nn import QuantLinear
from viditq.plan import LayerPlan, Plan
from viditq.quantizers import minmax_scale, round_nearest, unpack

PLANS = {
    "nearest": LayerPlan(),
    "smoothed": LayerPlan(weight="int6", smooth=0.5),
    "rotated": LayerPlan(weight="int4", hadamard=128),
    "both": LayerPlan(weight="int4", smooth=0.25, hadamard=128),
    "static": LayerPlan(granularity="tensor"),
    "static and balanced": LayerPlan(granularity="tensor", smooth=0.5, hadamard=128),
}
FULL = {"smooth": 0.5, "hadamard": 128, "rounding": "gptq", "clip": True, "bias_correction": True}
EVERY_PLAN = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def readers_of(linears, plan, stats) -> list[QuantLinear]:
    plans = [plan] * len(linears)
    return quantize_readers(linears, plans, balance_for(plans, linears, stats), stats)


# 36 = 3 · 12: a block of 4; 128: one whole block; 7: no rotation at all.
@pytest.mark.parametrize("k", [36, 128, 7])
@EVERY_PLAN
def test_codes_are_those_of_the_balanced_weight_rounded_once(plan, k):
    """Made here from the formula ``round((W · s) H / scale)``."""
    linear, stats = nn.Linear(k, 5), statistics(tokens(k))
    balance = make_balance(
        static_profile(stats.step_amax),
        linear.weight.detach().abs().amax(0),
        alpha=plan.smooth,
        hadamard=plan.hadamard,
    )
    balanced = balance.weight(linear.weight.detach())
    scale = minmax_scale(balanced, plan.weight_format)
    codes = round_nearest(balanced, scale, plan.weight_format)
    layer = readers_of([linear], plan, stats)[0]
    assert torch.equal(unpack(layer.weight, plan.weight_format, k), codes)
    assert torch.equal(layer.scale, scale)
    assert torch.equal(layer.bias, linear.bias)
    assert (layer.smooth is None) == (balance.smooth is None)
    if layer.smooth is not None:
        assert torch.equal(layer.smooth, balance.smooth)


@EVERY_PLAN
def test_a_layer_on_its_grid_is_quantized_without_loss(plan):
    """The weight a quantized layer stands for, quantized again, gives the same codes."""
    linear, stats = nn.Linear(128, 5), statistics(tokens(128))
    balance = balance_for([plan], [linear], stats)
    first = quantize_readers([linear], [plan], balance, stats)[0]
    codes = unpack(first.weight, plan.weight_format, 128)
    on_grid = codes.double() * first.scale.double()[:, None]
    if balance.hadamard:
        from viditq.ops import block_hadamard

        on_grid = block_hadamard(on_grid, balance.hadamard)
    if balance.smooth is not None:
        on_grid = on_grid / balance.smooth.double()
    again = copy.deepcopy(linear)
    again.weight.data = on_grid.float()
    second = quantize_readers([again], [plan], balance, stats)[0]
    assert torch.equal(second.weight, first.weight)
    torch.testing.assert_close(second.scale, first.scale)


@pytest.mark.parametrize("weight", ["int8", "int4"])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("bias", [True, False])
def test_bias_correction_removes_the_mean_error(weight, rounding, bias):
    """Of the weight's rounding, over the calibration tokens: in fp64, exactly."""
    k = 36
    fields = {"weight": weight, "rounding": rounding, "smooth": 0.5, "hadamard": 4}
    linear, x = nn.Linear(k, 5, bias=bias), tokens(k)
    stats = statistics(x)

    def mean_error(correct: bool) -> torch.Tensor:
        plan = LayerPlan(**fields, bias_correction=correct)
        balance = balance_for([plan], [linear], stats)
        layer = quantize_readers([linear], [plan], balance, stats)[0]
        codes = unpack(layer.weight, plan.weight_format, k).double()
        y = balance.activation(x.double()) @ (codes * layer.scale.double()[:, None]).T
        y = y + (0 if layer.bias is None else layer.bias.double())
        reference = x.double() @ linear.weight.double().T
        reference = reference + (linear.bias.double() if bias else 0)
        return (y - reference).mean(0).abs().max()

    assert mean_error(True) < 1e-5
    assert mean_error(False) > 100 * mean_error(True)


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_what_is_centered_is_float_at_the_center(bias, correct):
    """Nothing is left to quantize there, and the bias has what the float weight makes of it."""
    linear, x = nn.Linear(36, 5, bias=bias), tokens(36) + 20
    plan = LayerPlan(
        weight="int4", center=True, smooth=0.5, profile="rms", hadamard=4, bias_correction=correct
    )
    layer = readers_of([linear], plan, statistics(x))[0]
    torch.testing.assert_close(layer.center.float(), x.mean(0), rtol=2**-8, atol=1e-6)
    center = layer.center.float()[None]
    if not correct:
        torch.testing.assert_close(layer(center), linear(center))
    # What the center, rounded to bf16, is short of the mean counts as a mean error.
    mean = x.mean(0)[None]
    torch.testing.assert_close(layer(mean), linear(mean), rtol=0, atol=0.02)


def test_centering_takes_an_offset_out_of_a_tokens_range():
    linear, x = nn.Linear(36, 16), tokens(36, 500) + 30 * torch.randn(36)
    stats = statistics(x)

    def db(**fields):
        layer = readers_of([linear], LayerPlan(smooth=0.5, profile="rms", **fields), stats)[0]
        return output_sqnr_db(linear, layer, x)

    assert db(center=True, hadamard=4) > db(hadamard=4) + 10


def test_smoothing_by_rms_makes_the_product_of_both_powers_smallest():
    """Of all vectors: what a rotation makes noise of, and what the noise meets."""
    linear, x = nn.Linear(36, 16), tokens(36, 500) * torch.logspace(-1, 1, 36) + 3
    stats = statistics(x)
    for center in (False, True):
        plan = LayerPlan(smooth=0.5, profile="rms", center=center)
        smooth = balance_for([plan], [linear], stats).smooth
        shifted = x - x.mean(0) if center else x

        def powers(s, shifted=shifted):
            return (shifted / s).square().sum() * (linear.weight * s).square().sum()

        least = powers(smooth)
        assert powers(torch.ones(36)) > 1.1 * least
        for _ in range(20):
            assert powers(smooth * (1 + 0.3 * torch.rand(36))) > least * (1 - 1e-5)


def test_rounding_does_not_mind_the_mean_error_that_the_bias_takes():
    """On an input with a large offset the rest of the weight's error is smaller for it."""
    linear, x = nn.Linear(36, 16), tokens(36, 500) + 30 * torch.randn(36)

    def rest(correct: bool) -> float:
        plan = LayerPlan(weight="int4", rounding="gptq", bias_correction=correct)
        layer = readers_of([linear], plan, statistics(x))[0]
        codes = unpack(layer.weight, plan.weight_format, 36)
        error = (x - x.mean(0)) @ (codes * layer.scale[:, None] - linear.weight).T
        return error.square().mean().item()

    assert rest(True) < 0.8 * rest(False)


def test_readers_of_one_input_share_its_smooth_vector():
    """It balances the input against all of them: the largest weight of each column counts."""
    plan = LayerPlan(weight="int4", smooth=0.5, hadamard=4)
    q, k, v = nn.Linear(36, 8), nn.Linear(36, 4, bias=False), nn.Linear(36, 8)
    k.weight.data[:, 3] = 50.0
    stats = statistics(tokens(36))
    layers = readers_of([q, k, v], plan, stats)
    assert [layer.out_features for layer in layers] == [8, 4, 8]
    for layer in layers[1:]:
        assert torch.equal(layer.smooth, layers[0].smooth)
    alone = readers_of([q], plan, stats)[0]
    assert layers[0].smooth[3].abs() < alone.smooth[3].abs() / 2
    # Yet each has a copy: a checkpoint stores every layer whole.
    assert layers[0].smooth.data_ptr() != layers[1].smooth.data_ptr()


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_rounding_together_is_rounding_alone(rounding):
    """Output channels do not see each other, whichever layer they are of and whatever its plan."""
    fields = {"smooth": None, "hadamard": 4, "rounding": rounding, "clip": True}
    plans = [LayerPlan(weight=w, **fields) for w in ("int4", "int8", "int4")]
    linears, stats = [nn.Linear(36, n) for n in (8, 4, 5)], statistics(tokens(36))
    balance = balance_for(plans, linears, stats)
    together = quantize_readers(linears, plans, balance, stats)
    for linear, plan, layer in zip(linears, plans, together, strict=True):
        alone = quantize_readers([linear], [plan], balance, stats)[0]
        assert layer.plan == plan
        assert torch.equal(layer.weight, alone.weight)
        torch.testing.assert_close(layer.scale, alone.scale)


def test_a_static_scale_covers_what_calibration_saw():
    stats = statistics(tokens(36))
    for activation, qmax in (("int8", 127), ("int6", 31)):
        plan = LayerPlan(activation=activation, granularity="tensor")
        layer = readers_of([nn.Linear(36, 5)], plan, stats)[0]
        assert layer.input_scale.shape == ()
        torch.testing.assert_close(layer.input_scale * qmax, stats.rows.abs().max())


@pytest.mark.parametrize("hadamard", [0, 4])
def test_a_static_scale_is_of_the_balanced_input(hadamard):
    """Without a rotation of all that calibration saw, with one of the tokens that it kept."""
    stats, linear = statistics(tokens(36)), nn.Linear(36, 5)
    plan = LayerPlan(granularity="tensor", smooth=0.5, hadamard=hadamard)
    layer = readers_of([linear], plan, stats)[0]
    balanced = balance_for([plan], [linear], stats).activation(stats.rows)
    torch.testing.assert_close(layer.input_scale * 127, balanced.abs().max())
    few = dataclasses.replace(stats, rows=stats.rows[:3])
    fewer = readers_of([linear], plan, few)[0]
    assert torch.equal(fewer.input_scale, layer.input_scale) == (hadamard == 0)


def test_better_methods_are_better():
    """On an input with an outlier channel, each step of the method lowers the layer's error."""
    linear, stats = nn.Linear(128, 64), statistics(tokens(128, 1000))

    def db(**fields):
        layer = readers_of([linear], LayerPlan(weight="int4", **fields), stats)[0]
        return output_sqnr_db(linear, layer, stats.rows)

    naive, token = db(granularity="tensor"), db()
    smooth, both = db(smooth=0.5), db(smooth=0.5, hadamard=128)
    full = db(**FULL)
    assert naive < token + 1
    assert max(smooth, both) > token + 1
    assert full > max(smooth, both) + 2


@pytest.mark.parametrize("rows", ["constant", "one token", "zeros", "huge offset"])
def test_inputs_that_hardly_vary(rows):
    """A caption of one token, an unused branch: nothing to learn from, nothing to fail on."""
    x = {
        "constant": torch.randn(1, 36).repeat(50, 1) * 100,
        "one token": torch.randn(1, 36).repeat(2, 1),
        "zeros": torch.zeros(10, 36),
        "huge offset": torch.randn(100, 36) * 1e-3 + 1e3,
    }[rows]
    linear = nn.Linear(36, 5)
    layer = readers_of([linear], LayerPlan(weight="int4", **FULL), statistics(x))[0]
    reference = linear(x)
    relative = (layer(x) - reference).norm() / reference.norm()
    assert relative < 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights(dtype):
    linear, stats = nn.Linear(36, 5).to(dtype), statistics(tokens(36))
    layer = readers_of([linear], LayerPlan(**FULL), stats)[0]
    assert layer.bias.dtype == dtype
    assert layer.scale.dtype == torch.float32
    wide = readers_of([copy.deepcopy(linear).float()], LayerPlan(**FULL), stats)[0]
    assert torch.equal(layer.weight, wide.weight)
    assert torch.equal(layer.scale, wide.scale)


def test_two_sided_rounding_lowers_the_error_that_counts():
    """Readers of one input, each by its own gradients; the others as if there were none."""
    plan = LayerPlan(weight="int4", rounding="two_sided", bias_correction=True)
    plans = [plan, plan, LayerPlan(weight="int4", rounding="gptq", bias_correction=True)]
    linears, x = [nn.Linear(36, n) for n in (32, 24, 16)], tokens(36, 500)
    stats, balance = statistics(x), balance_for(plans, linears, statistics(x))
    mixes = [torch.randn(linear.out_features, 4) for linear in linears]
    gradients = [mix @ mix.T for mix in mixes]
    ours = quantize_readers(linears, plans, balance, stats, [*gradients[:2], None])
    gptq = quantize_readers(linears, plans, balance, stats)
    for linear, mix, layer, other in zip(linears, mixes, ours, gptq, strict=True):
        error, before = (((one(x) - linear(x)) @ mix).square().mean() for one in (layer, other))
        assert error < 0.7 * before or layer is ours[2]
    assert torch.equal(ours[2].weight, gptq[2].weight)


class TestModel:
    """A whole transformer, with statistics drawn by lot."""

    @pytest.fixture(params=["pixart", "latte", "odd"])
    def model(self, request):
        return {
            "pixart": tiny.pixart,
            "latte": tiny.latte,
            # 3 × 12: no multiple of 128, of 8 or of 16; a single block.
            "odd": lambda: tiny.pixart(heads=3, head_dim=12, layers=1, caption=20),
        }[request.param]().transformer

    def stats(self, model):
        layers = adapter_for(model).layers(model).values()
        by_group = {info.group: statistics(tokens(info.in_features, 60)) for info in layers}
        return {info.name: by_group[info.group] for info in layers}

    def plan(self, model, layer_plan, names=None):
        adapter = adapter_for(model)
        layers = dict.fromkeys(names or adapter.layers(model), layer_plan)
        return Plan(model=adapter.name, recipe="test", layers=layers)

    def test_planned_layers_change_and_others_do_not(self, model):
        names = list(adapter_for(model).layers(model))
        chosen = names[:3] + names[-1:]
        kept = {n: p for n, p in model.named_parameters() if n.rpartition(".")[0] not in chosen}
        copies = {name: p.detach().clone() for name, p in kept.items()}
        shown = []

        def track(items, description, total=None):
            shown.append((description, total))
            yield from items

        plan = self.plan(model, LayerPlan(**FULL), chosen)
        diagnostics = quantize_(model, plan, self.stats(model), track=track)
        assert list(diagnostics) == chosen
        assert shown == [("quantize", 2)]
        for name, module in model.named_modules():
            assert isinstance(module, QuantLinear) == (name in chosen)
        after = dict(model.named_parameters())
        for name, parameter in kept.items():
            assert after[name] is parameter
            assert torch.equal(parameter, copies[name])

    def test_two_sided_rounding_needs_the_gradients(self, model):
        plan = self.plan(model, LayerPlan(weight="int4", rounding="two_sided"))
        first = next(iter(plan.layers))
        others = {
            name: torch.eye(info.out_features)
            for name, info in adapter_for(model).layers(model).items()
            if name != first
        }
        for gradients in (None, others):
            with refuses(CalibrationError, "transformer_blocks.0.", "observe_gradients"):
                quantize_(model, plan, self.stats(model), gradients)
        assert isinstance(model.get_submodule(first), nn.Linear)
        assert not isinstance(model.get_submodule(first), QuantLinear)

    @pytest.mark.parametrize("weight", ["int8", "int6", "int4"])
    def test_diagnostics_describe_the_layers(self, model, weight):
        stats = self.stats(model)
        floats = {n: copy.deepcopy(model.get_submodule(n)) for n in stats}
        diagnostics = quantize_(model, self.plan(model, LayerPlan(weight=weight, **FULL)), stats)
        infos = adapter_for(model).layers(model)
        assert list(diagnostics) == list(infos)
        for name, d in diagnostics.items():
            layer = model.get_submodule(name)
            assert isinstance(layer, QuantLinear)
            assert (d.role, d.weight_format, d.activation_format) == (
                infos[name].role,
                weight,
                "int8",
            )
            assert (d.in_features, d.out_features) == (layer.in_features, layer.out_features)
            assert d.size_bytes == layer.size_bytes
            assert d.float_size_bytes == 2 * floats[name].weight.numel()
            rows = stats[name].rows
            error = (layer(rows) - floats[name](rows)).double().square().sum()
            signal = (rows @ floats[name].weight.T).double().square().sum()
            assert d.sqnr_db == pytest.approx(10 * torch.log10(signal / error).item(), abs=0.1)
            assert d.incoherence_before >= d.incoherence_after > 1
            assert [s.step for s in d.steps] == [0, 9]

    # A layer to quantize, and what stays float: a model with either is unsound.
    @pytest.mark.parametrize("name", ["transformer_blocks.0.attn2.to_q.weight", "proj_out.bias"])
    @pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
    def test_parameters_that_are_not_finite(self, model, name, bad):
        model.get_parameter(name).data.view(-1)[1] = bad
        with refuses(PipelineError, name, "NaN or inf"):
            quantize_(model, self.plan(model, LayerPlan()), self.stats(model))
        assert not any(isinstance(m, QuantLinear) for m in model.modules())

    def test_readers_of_one_input_that_are_to_be_balanced_differently(self, model):
        plan = self.plan(model, LayerPlan(smooth=0.5))
        last = [n for n in plan.layers if n.endswith("attn1.to_v")][-1]
        plan = plan.model_copy(update={"layers": plan.layers | {last: LayerPlan(smooth=0.25)}})
        with refuses(PlanError, last.replace("to_v", "to_q"), "same smooth, profile, center"):
            quantize_(model, plan, self.stats(model))
        assert not any(isinstance(m, QuantLinear) for m in model.modules())

    def test_formats_of_readers_may_differ(self, model):
        plan = self.plan(model, LayerPlan(smooth=0.5))
        value = next(n for n in plan.layers if n.endswith("attn1.to_v"))
        changed = plan.layers | {value: LayerPlan(weight="int4", smooth=0.5)}
        quantize_(model, plan.model_copy(update={"layers": changed}), self.stats(model))
        assert model.get_submodule(value).plan.weight == "int4"

    def test_statistics_of_another_model(self, model):
        stats = self.stats(model)
        first = next(iter(stats))
        with refuses(CalibrationError, first, "7 channels"):
            quantize_(model, self.plan(model, LayerPlan()), stats | {first: statistics(tokens(7))})
        del stats[first]
        with refuses(CalibrationError, first):
            quantize_(model, self.plan(model, LayerPlan()), stats)


def test_groups_keep_their_order():
    model = tiny.pixart(layers=1).transformer
    infos = adapter_for(model).layers(model)
    groups = group_layers(infos.values())
    assert [info.name for group in groups.values() for info in group] == list(infos)
    assert [len(group) for group in groups.values()] == [3, 1, 1, 2, 1, 1, 1]
    # A group whose first reader stays float goes by its second.
    some = [info for info in infos.values() if not info.name.endswith("attn1.to_q")]
    assert next(iter(group_layers(some))).endswith("attn1.to_k")
