"""Adapters are facts about diffusers' classes; the classes are asked whether they hold."""

import pytest
import torch
from torch import nn

from checks import refuses
from tiny_transformers import CASES, Case, float_part
from viditq import models
from viditq.errors import InputError, PipelineError
from viditq.models import (
    ADAPTERS,
    Adapter,
    adapter_for,
    adapter_named,
    register_adapter,
    transformer_class,
)
from viditq.plan import ROLES


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def model(case) -> nn.Module:
    return case.model()


def run(model: nn.Module, case: Case) -> None:
    with torch.inference_mode():
        model(**case.inputs())


def test_every_linear_of_every_block_has_a_role_and_nothing_else(model, case):
    """Embedders, modulation and the final layer stay float: paper, section 4.1."""
    layers = adapter_for(model).layers(model)
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set(layers) <= linears
    assert {float_part(name) for name in linears - set(layers)} == case.float_parts


def test_facts_about_each_layer(model):
    for name, info in adapter_for(model).layers(model).items():
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        assert info.name == name
        assert (info.in_features, info.out_features) == (linear.in_features, linear.out_features)
        assert info.role in ROLES
        assert name.startswith(f"{info.block}.")
        assert isinstance(model.get_submodule(info.block), nn.Module)
        over_time = "temporal" in name and "attn" in name and ".attn2." not in name
        assert ("temporal" in info.role) == over_time


def test_layers_of_one_group_read_one_tensor_and_others_do_not(model, case):
    layers = adapter_for(model).layers(model)
    read: dict[str, torch.Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, arguments, name=name: read.__setitem__(name, arguments[0])
        )
        for name in layers
    ]
    run(model, case)
    for handle in handles:
        handle.remove()
    assert set(read) == set(layers)
    for a in layers.values():
        for b in layers.values():
            if a.block == b.block:
                same = read[a.name] is read[b.name]
                assert same == (a.group == b.group), (a.name, b.name)
            else:
                assert a.group != b.group


def test_layers_come_in_the_order_in_which_they_run(model, case):
    layers = adapter_for(model).layers(model)
    order: list[str] = []
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, arguments, name=name: order.append(name)
        )
        for name in layers
    ]
    run(model, case)
    for handle in handles:
        handle.remove()
    assert list(layers) == order


def test_a_group_is_named_after_its_first_layer(model):
    layers = adapter_for(model).layers(model)
    for info in layers.values():
        assert layers[info.group].group == info.group
        assert layers[info.group].in_features == info.in_features


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: a.name)
def test_an_adapter_is_found_by_its_class(adapter):
    assert adapter_named(adapter.transformer) is adapter
    assert transformer_class(adapter.transformer).__name__ == adapter.transformer
    assert adapter.name in CASES
    assert adapter.kind in ("image", "video")


def test_a_class_without_adapter():
    with refuses(PipelineError, "MochiTransformer3DModel", *(a.transformer for a in ADAPTERS)):
        adapter_named("MochiTransformer3DModel")
    with refuses(PipelineError, "Linear"):
        adapter_for(nn.Linear(1, 1))


def test_a_class_of_that_name_with_other_parts():
    class PixArtTransformer2DModel(nn.Module):
        pass

    with refuses(PipelineError, "PixArtTransformer2DModel", "'transformer_blocks'"):
        adapter_for(impostor := PixArtTransformer2DModel()).layers(impostor)


def adapter(roles: dict[str, str], shared: tuple[tuple[str, ...], ...] = ()) -> Adapter:
    return Adapter("mine", "MyTransformer", "image", {"blocks": roles}, shared)


def test_a_role_that_there_is_not():
    with refuses(InputError, "'mine'", "'to_q'", "'attention'", *ROLES):
        adapter({"to_q": "attention"})


@pytest.mark.parametrize("shared", [(("q", "v"),), (("q", "k"), ("q", "k")), (("q", "q"),)])
def test_shared_inputs_of_layers_without_role_or_in_two_groups(shared):
    with refuses(InputError, "'mine'", "share an input"):
        adapter({"q": "self_attn.qkv", "k": "self_attn.qkv"}, shared)


def test_a_token_mask_of_nothing_that_there_is():
    with refuses(InputError, "'mine'", "'to_k'", "token mask"):
        Adapter("mine", "Mine", "image", {"blocks": {"q": "self_attn.qkv"}}, (), {"to_k": "mask"})


def test_one_of_ones_own_takes_the_place_of_any_other(monkeypatch):
    monkeypatch.setattr(models, "_BY_CLASS", dict(models._BY_CLASS))
    register_adapter(mine := adapter({"to_q": "self_attn.qkv"}))
    register_adapter(other := adapter({"to_k": "self_attn.qkv"}))
    assert mine != other
    assert adapter_named("MyTransformer") is other
    layer = nn.ModuleDict({"to_q": nn.Linear(3, 4), "to_k": nn.Linear(5, 6)})
    model = type("MyTransformer", (nn.Module,), {})()
    model.blocks = nn.ModuleList([layer])
    assert list(adapter_for(model).layers(model)) == ["blocks.0.to_k"]
