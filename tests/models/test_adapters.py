"""Adapters are facts about diffusers' classes; the classes are asked whether they hold."""

import pytest
import torch
from torch import nn

import tiny
from checks import refuses
from viditq.errors import PipelineError
from viditq.models import ADAPTERS, adapter_for, adapter_named
from viditq.plan import ROLES

# More blocks than ten in one of them, so that "10" has to come after "9".
MODELS = {
    "PixArtTransformer2DModel": lambda: tiny.pixart(layers=11).transformer,
    "LatteTransformer3DModel": lambda: tiny.latte(layers=2).transformer,
    "FluxTransformer2DModel": lambda: tiny.flux(layers=11, single_layers=2),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request) -> nn.Module:
    return MODELS[request.param]().eval()


def run(model: nn.Module) -> None:
    """One forward pass on two prompts, both longer than one token."""
    if isinstance(model, tiny.FluxTransformer2DModel):
        with torch.inference_mode():
            model(**tiny.flux_inputs())
        return
    latents = torch.randn(2, 4, 8, 8)
    if isinstance(model, tiny.LatteTransformer3DModel):
        latents = latents[:, :, None].repeat(1, 1, 2, 1, 1)
    with torch.inference_mode():
        model(
            hidden_states=latents,
            timestep=torch.tensor([500, 500]),
            encoder_hidden_states=torch.randn(2, 5, 16),
            **(
                {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
                if isinstance(model, tiny.PixArtTransformer2DModel)
                else {}
            ),
        )


def test_every_linear_of_every_block_has_a_role_and_nothing_else(model):
    """Embedders, modulation and the final layer stay float: paper, section 4.1."""
    layers = adapter_for(model).layers(model)
    in_blocks = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "transformer_blocks." in name and "norm" not in name
    }
    assert set(layers) == in_blocks
    outside = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)} - in_blocks
    embedders = {"adaln_single", "caption_projection"}
    if isinstance(model, tiny.FluxTransformer2DModel):
        embedders = {"time_text_embed", "context_embedder", "x_embedder", "norm_out"}
    assert {n.partition(".")[0] for n in outside} >= embedders


def test_facts_about_each_layer(model):
    for name, info in adapter_for(model).layers(model).items():
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        assert info.name == name
        assert (info.in_features, info.out_features) == (linear.in_features, linear.out_features)
        assert info.role in ROLES
        assert name.startswith(f"{info.block}.")
        assert isinstance(model.get_submodule(info.block), nn.Module)
        assert ("temporal" in info.role) == (name.startswith("temporal") and ".attn" in name)


def test_layers_of_one_group_read_one_tensor_and_others_do_not(model):
    layers = adapter_for(model).layers(model)
    read: dict[str, torch.Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, arguments, name=name: read.__setitem__(name, arguments[0])
        )
        for name in layers
    ]
    run(model)
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


def test_layers_come_in_the_order_in_which_they_run(model):
    layers = adapter_for(model).layers(model)
    order: list[str] = []
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, arguments, name=name: order.append(name)
        )
        for name in layers
    ]
    run(model)
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
    assert adapter.transformer in MODELS
    assert adapter.kind in ("image", "video")


def test_a_class_without_adapter():
    with refuses(PipelineError, "SD3Transformer2DModel", *MODELS):
        adapter_named("SD3Transformer2DModel")
    with refuses(PipelineError, "Linear"):
        adapter_for(nn.Linear(1, 1))


def test_a_class_of_that_name_with_other_parts():
    class PixArtTransformer2DModel(nn.Module):
        pass

    with refuses(PipelineError, "PixArtTransformer2DModel", "'transformer_blocks'"):
        adapter_for(impostor := PixArtTransformer2DModel()).layers(impostor)
