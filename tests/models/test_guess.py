"""A guessed adapter: from names alone, from a run, on disk, and what is said about it."""

import logging
import re

import pytest
import torch
from accelerate import init_empty_weights
from torch import nn

from checks import refuses
from tiny_transformers import CASES, WITHOUT_ADAPTER, float_part
from viditq import models
from viditq.errors import PipelineError
from viditq.models import Adapter, adapter_for, guess_adapter, register_adapter

# Roles that names cannot tell, by the end of the layer's name.
BEYOND_NAMES = {
    # The layer does more than it is called for.
    r"single_transformer_blocks\.\d+\.attn\.to_qkv_mlp_proj",
    r"single_transformer_blocks\.\d+\.attn\.to_out",
    # A second self-attention; elsewhere ``attn2`` is cross-attention.
    r"SD3.*\.attn2\..*",
}


def facts(adapter: Adapter, model: nn.Module, *, groups: bool) -> dict[str, tuple[str, ...]]:
    return {
        name: (info.role, info.group) if groups else (info.role,)
        for name, info in adapter.layers(model).items()
    }


@pytest.mark.parametrize("name", CASES)
def test_names_tell_which_layers_are_quantized_and_nearly_all_roles(name):
    """What the adapters say, found again without them."""
    model = CASES[name].model()
    known, guessed = adapter_for(model), guess_adapter(model)
    expected = facts(known, model, groups=False)
    found = facts(guessed, model, groups=False)
    assert set(found) == set(expected)
    assert guessed.kind == known.kind
    for layer, role in found.items():
        path = f"{type(model).__name__}.{layer}"
        if not any(re.search(f"{pattern}$", path) for pattern in BEYOND_NAMES):
            assert role == expected[layer], layer


@pytest.mark.parametrize("name", CASES)
def test_a_run_tells_which_layers_share_an_input(name):
    case = CASES[name]
    model = case.model()
    guessed = guess_adapter(model, lambda: model(**case.inputs()))
    expected = facts(adapter_for(model), model, groups=True)
    found = facts(guessed, model, groups=True)
    assert {layer: group for layer, (_, group) in found.items()} == {
        layer: group for layer, (_, group) in expected.items()
    }
    assert not any(module._forward_pre_hooks for module in model.modules())


class Block(nn.Module):
    """Attention of one head and a feed-forward, with names that are nobody's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_modulation = nn.Linear(width, 2 * width)
        self.attention = nn.ModuleDict(
            {name: nn.Linear(width, width) for name in ("query", "key", "value", "o_proj")}
        )
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 80), "fc2": nn.Linear(80, width)})
        self.unused_to_q = nn.Linear(width, width)
        self.mystery = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        gain, shift = self.ada_modulation(time)[:, None].chunk(2, -1)
        y = x * (1 + gain) + shift
        query, key = self.attention["query"](y), self.attention["key"](y)
        y.mul_(2)
        value = self.attention["value"](y)
        x = x + self.attention["o_proj"](
            nn.functional.scaled_dot_product_attention(query, key, value)
        )
        return x + self.mlp["fc2"](self.mlp["fc1"](self.mystery(x)).relu())


class MadeUpTransformer(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embedders = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.layers = nn.ModuleList(Block(width) for _ in range(2))
        self.proj_out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        for embedder in self.embedders:
            x = embedder(x)
        for layer in self.layers:
            x = layer(x, time)
        return self.proj_out(x)


# List of blocks, name of a layer in them, features in and out, its role.
NAMED = [
    ("blocks", "attn.qkv", 8, 24, "self_attn.qkv"),
    ("blocks", "self_attention.to_query", 8, 8, "self_attn.qkv"),
    ("blocks", "attn1.wk", 8, 8, "self_attn.qkv"),
    ("blocks", "attn.add_v_proj", 8, 8, "self_attn.qkv"),
    ("blocks", "attn.o_proj", 8, 8, "self_attn.out"),
    ("blocks", "attn.to_add_out", 8, 8, "self_attn.out"),
    ("blocks", "attn.proj", 8, 8, "self_attn.out"),
    ("blocks", "attn2.to_q", 8, 8, "cross_attn.q"),
    ("blocks", "cross_attn.kv_linear", 8, 16, "cross_attn.kv"),
    ("blocks", "crossattention.value", 8, 8, "cross_attn.kv"),
    ("blocks", "attn2.to_out.0", 8, 8, "cross_attn.out"),
    ("temporal_blocks", "attn.to_k", 8, 8, "temporal_attn.qkv"),
    ("blocks", "temporal_attn.out_proj", 8, 8, "temporal_attn.out"),
    ("blocks", "mlp.fc1", 8, 32, "ffn.up"),
    ("blocks", "mlp.fc2", 32, 8, "ffn.down"),
    ("blocks", "feed_forward.w3", 8, 32, "ffn.up"),
    ("blocks", "ff.gate_proj", 8, 32, "ffn.up"),
    # Called second, but it widens: the other half of a gated feed-forward.
    ("blocks", "ff.linear_2", 8, 32, "ffn.up"),
    ("blocks", "ffn.fc1", 8, 8, "ffn.up"),
    ("blocks", "ffn.fc2", 8, 8, "ffn.down"),
    ("single_blocks", "proj_mlp", 8, 32, "ffn.up"),
    ("single_blocks", "proj_out", 40, 8, "ffn.down"),
    ("single_blocks", "proj_out", 8, 8, "self_attn.out"),
]
STAY_FLOAT = [
    ("blocks", "norm1.linear", 8, 48),
    ("blocks", "adaLN_modulation.1", 8, 48),
    ("blocks", "img_mod.1", 8, 48),
    ("blocks", "attn.time_embed.to_q", 8, 8),
    ("blocks", "attn.gate_proj", 8, 2),
    ("blocks", "mlp.gate", 8, 4),
    ("blocks", "mlp.experts.0.fc1", 8, 32),
    ("blocks", "attn.to_q.lora_A.default", 8, 4),
    ("blocks", "linear", 8, 8),
    ("caption_embedder.blocks", "attn.to_q", 8, 8),
]


def with_layer(blocks: str, local: str, k: int, n: int) -> nn.Module:
    """A model with one layer more than a key in each of two blocks."""

    def block() -> nn.Module:
        block = nn.Module()
        nested(block, "own.to_k", nn.Linear(8, 8))
        nested(block, local, nn.Linear(k, n))
        return block

    model = nn.Module()
    nested(model, blocks, nn.ModuleList([block(), block()]))
    nested(model, "layers", nn.ModuleList([block(), block()]))
    return model


def nested(model: nn.Module, name: str, module: nn.Module) -> None:
    *path, last = name.split(".")
    for part in path:
        if not hasattr(model, part):
            model.add_module(part, nn.Module())
        model = getattr(model, part)
    model.add_module(last, module)


@pytest.mark.parametrize(("blocks", "local", "k", "n", "role"), NAMED)
def test_roles_by_name(blocks, local, k, n, role):
    assert guess_adapter(with_layer(blocks, local, k, n)).roles[blocks][local] == role


@pytest.mark.parametrize(("blocks", "local", "k", "n"), STAY_FLOAT)
def test_what_stays_float_by_name(blocks, local, k, n):
    assert local not in guess_adapter(with_layer(blocks, local, k, n)).roles.get(blocks, {})


def test_a_made_up_class():
    model = MadeUpTransformer()
    guessed = guess_adapter(model)
    assert (guessed.name, guessed.kind) == ("guessed:MadeUpTransformer", "image")
    assert guessed.roles == {
        "layers": {
            "attention.query": "self_attn.qkv",
            "attention.key": "self_attn.qkv",
            "attention.value": "self_attn.qkv",
            "attention.o_proj": "self_attn.out",
            "mlp.fc1": "ffn.up",
            "mlp.fc2": "ffn.down",
            "unused_to_q": "self_attn.qkv",
        }
    }
    assert guessed.shared_inputs == ()
    with init_empty_weights():
        assert guess_adapter(MadeUpTransformer()) == guessed


@pytest.mark.parametrize("inference", [False, True])
def test_one_object_with_other_content_is_another_input(inference):
    """``value`` reads the tensor that ``query`` read, but doubled in the meantime."""
    model = MadeUpTransformer()
    with torch.inference_mode(inference):
        guessed = guess_adapter(model, lambda: model(torch.randn(2, 5, 32), torch.randn(2, 32)))
    assert guessed.shared_inputs == (("attention.query", "attention.key"),)
    assert "unused_to_q" not in guessed.roles["layers"]


def test_inputs_made_in_inference_mode():
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            names = ("to_q", "to_k")
            self.layers = nn.ModuleList([nn.ModuleDict({n: nn.Linear(4, 4) for n in names})])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers[0]["to_q"](x) + self.layers[0]["to_k"](x)

    model = Plain()
    with torch.inference_mode():
        x = torch.randn(2, 4)
    assert guess_adapter(model, lambda: model(x)).shared_inputs == (("to_q", "to_k"),)


def test_a_run_that_reaches_nothing():
    with refuses(PipelineError, "MadeUpTransformer"):
        guess_adapter(MadeUpTransformer(), lambda: None)


def test_said_once(caplog, monkeypatch):
    models._say_guessed.cache_clear()
    with caplog.at_level(logging.WARNING, logger="viditq"):
        for _ in range(3):
            adapter_for(MadeUpTransformer())
        for name in CASES:
            adapter_for(CASES[name].model())
    [record] = caplog.records
    assert record.getMessage().startswith("MadeUpTransformer has no adapter: ")
    assert "layers" in record.getMessage()
    caplog.clear()
    monkeypatch.setattr(models, "_BY_CLASS", dict(models._BY_CLASS))
    register_adapter(own := guess_adapter(MadeUpTransformer()))
    models._say_guessed.cache_clear()
    assert adapter_for(MadeUpTransformer()) is own
    assert not caplog.records


@pytest.mark.parametrize(
    "model", [nn.Linear(1, 1), nn.TransformerEncoderLayer(8, 2), MadeUpTransformer().embedders]
)
def test_nothing_to_guess_from(model):
    with refuses(PipelineError, type(model).__name__, "no adapter"):
        adapter_for(model)


def test_weights_that_are_read_past_their_layer_stay_float():
    """torch's own attention never calls its output projection, so calibration would see nothing."""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 2, enable_nested_tensor=False)
    with refuses(PipelineError, "TransformerEncoder"):
        adapter_for(encoder)


def test_a_compiled_model():
    model = torch.compile(MadeUpTransformer())
    with refuses(PipelineError, "quantize it first"):
        adapter_for(model)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", WITHOUT_ADAPTER)
def test_of_diffusers(name):
    """Nothing of a block but modulation stays float, and readers of one input are found."""
    case = WITHOUT_ADAPTER[name]
    model = case.model()
    guessed = guess_adapter(model, lambda: model(**case.inputs()))
    layers = guessed.layers(model)
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert {float_part(name) for name in linears - set(layers)} == case.float_parts
    assert set(layers) == set(guess_adapter(model).layers(model))
    groups = {info.group for info in layers.values()}
    assert len(groups) < len(layers) * 3 / 4
