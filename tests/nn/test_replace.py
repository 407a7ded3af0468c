"""Empty layers go where the plan says, and nowhere else."""

import pytest
import torch
from accelerate import init_empty_weights
from torch import nn

import tiny
from checks import refuses
from viditq.errors import PlanError
from viditq.models import adapter_for
from viditq.nn import QuantLinear, planned_layers, replace_
from viditq.plan import LayerPlan, Plan


@pytest.fixture
def model() -> nn.Module:
    return tiny.pixart().transformer


def plan_for(model: nn.Module, *names: str, family: str | None = None) -> Plan:
    adapter = adapter_for(model)
    layers = dict.fromkeys(names or adapter.layers(model), LayerPlan(weight="int4"))
    return Plan(model=family or adapter.name, recipe="test", layers=layers)


def test_all_planned_layers_and_no_others(model):
    names = ["transformer_blocks.1.ff.net.2", "transformer_blocks.0.attn1.to_q"]
    others = {n: m for n, m in model.named_modules() if n not in names and not list(m.children())}
    replace_(model, plan_for(model, *names))
    for name in names:
        assert isinstance(model.get_submodule(name), QuantLinear)
    for name, module in others.items():
        assert model.get_submodule(name) is module


def test_without_storage(model):
    with init_empty_weights():
        empty = type(model).from_config(model.config)
    replace_(empty, plan_for(empty))
    quantized = [m for m in empty.modules() if isinstance(m, QuantLinear)]
    assert len(quantized) == 20
    assert all(t.device.type == "meta" for m in quantized for t in m.parameters())


def test_a_layer_keeps_its_dtype_and_bias(model):
    model = model.to(torch.bfloat16)
    name = "transformer_blocks.0.attn1.to_q"
    had_bias = model.get_submodule(name).bias is not None
    layer = replace_(model, plan_for(model, name)).get_submodule(name)
    assert (layer.bias is not None) == had_bias
    assert layer.bias.dtype == torch.bfloat16
    assert layer.scale.dtype == torch.float32


def test_planned_layers_are_in_the_models_order(model):
    names = list(adapter_for(model).layers(model))
    assert list(planned_layers(model, plan_for(model, *reversed(names)))) == names


def test_a_plan_with_a_layer_that_is_not_there(model):
    before = dict(model.named_modules())
    with refuses(PlanError, "'transformer_blocks.7.attn1.to_q'", "PixArtTransformer2DModel"):
        replace_(
            model,
            plan_for(model, "transformer_blocks.0.attn1.to_q", "transformer_blocks.7.attn1.to_q"),
        )
    assert dict(model.named_modules()) == before


def test_a_plan_with_a_layer_that_stays_float(model):
    with refuses(PlanError, "'proj_out'"):
        planned_layers(model, plan_for(model, "proj_out"))


def test_a_plan_of_another_family_whose_names_fit(model):
    """Latte's spatial blocks are called as PixArt's are."""
    with refuses(PlanError, "latte", "pixart"):
        planned_layers(model, plan_for(model, family="latte"))
