"""Adapters are facts about diffusers' classes; the classes are asked whether they hold."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel
from torch import nn

import tiny
from checks import refuses
from viditq.errors import PipelineError
from viditq.models import ADAPTERS, adapter_for, adapter_named
from viditq.plan import ROLES


@dataclass(frozen=True)
class Case:
    """A tiny model of a class, what else it is called with, and what stays float in it."""

    make: Callable[[], nn.Module]
    latents: tuple[int, ...]
    float_parts: set[str]
    arguments: Callable[[], dict[str, Any]] = dict


WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 48,
    "num_layers": 2,
}
FLUX_FLOAT = {"time_text_embed", "context_embedder", "x_embedder", "norm_out", "proj_out"}
FLUX_FLOAT |= {"norm.linear", "norm1.linear", "norm1_context.linear"}
WAN_FLOAT = {"condition_embedder", "proj_out"}
COGVIDEOX = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "text_embed_dim": 16,
    "time_embed_dim": 16,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 5,
    "max_text_seq_length": 5,
}

# More blocks than ten in one of them, so that "10" has to come after "9".
CASES = {
    "pixart": Case(
        lambda: tiny.pixart(layers=11).transformer,
        (2, 4, 8, 8),
        {"adaln_single", "caption_projection", "proj_out"},
        lambda: {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    ),
    "latte": Case(
        lambda: tiny.latte(layers=2).transformer,
        (2, 4, 2, 8, 8),
        {"adaln_single", "caption_projection", "proj_out"},
    ),
    "stdit": Case(
        lambda: tiny.stdit(layers=11),
        (2, 4, 2, 8, 8),
        {"adaln_single", "caption_projection", "proj_out"},
    ),
    "stdit3": Case(
        lambda: tiny.stdit3(layers=11),
        (2, 4, 2, 8, 8),
        {"time_embedding", "fps_embedding", "time_modulation", "caption_projection", "proj_out"},
        lambda: {"fps": torch.tensor([24, 24]), "height": 64, "width": 64},
    ),
    "flux": Case(
        lambda: tiny.flux(layers=11, single_layers=2),
        (),
        FLUX_FLOAT,
        tiny.flux_inputs,
    ),
    "wan": Case(lambda: WanTransformer3DModel(**WAN), (2, 4, 2, 8, 8), WAN_FLOAT),
    "wan, image to video": Case(
        lambda: WanTransformer3DModel(**WAN, image_dim=16, added_kv_proj_dim=32),
        (2, 4, 2, 8, 8),
        WAN_FLOAT,
        # The caption is what stands behind so many tokens of the image that 512 are left.
        lambda: {
            "encoder_hidden_states": torch.randn(2, 512, 16),
            "encoder_hidden_states_image": torch.randn(2, 5, 16),
        },
    ),
    "cogvideox": Case(
        lambda: CogVideoXTransformer3DModel(**COGVIDEOX),
        (2, 2, 4, 8, 8),
        {"patch_embed", "time_embedding", "norm_out", "proj_out", "norm1.linear", "norm2.linear"},
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def model(case) -> nn.Module:
    torch.manual_seed(0)
    return case.make().eval()


def run(model: nn.Module, case: Case) -> None:
    """One forward pass on two prompts, both longer than one token."""
    arguments = {
        "hidden_states": torch.randn(case.latents),
        "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": torch.randn(2, 5, 16),
    }
    with torch.inference_mode():
        model(**arguments | case.arguments())


def test_every_linear_of_every_block_has_a_role_and_nothing_else(model, case):
    """Embedders, modulation and the final layer stay float: paper, section 4.1."""
    layers = adapter_for(model).layers(model)
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set(layers) <= linears
    assert {float_part(name) for name in linears - set(layers)} == case.float_parts


def float_part(name: str) -> str:
    """The part of the model that a layer belongs to; of a block, which part of that."""
    first, *rest = name.split(".")
    return ".".join(rest[1:]) if first.endswith("blocks") else first


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
    assert adapter.transformer_class.__name__ == adapter.transformer
    assert adapter.name in CASES
    assert adapter.kind in ("image", "video")


def test_a_class_without_adapter():
    with refuses(PipelineError, "LTXVideoTransformer3DModel", *(a.transformer for a in ADAPTERS)):
        adapter_named("LTXVideoTransformer3DModel")
    with refuses(PipelineError, "Linear"):
        adapter_for(nn.Linear(1, 1))


def test_a_class_of_that_name_with_other_parts():
    class PixArtTransformer2DModel(nn.Module):
        pass

    with refuses(PipelineError, "PixArtTransformer2DModel", "'transformer_blocks'"):
        adapter_for(impostor := PixArtTransformer2DModel()).layers(impostor)
