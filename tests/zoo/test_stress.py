"""Stress variants compute the same and are hard to quantize."""

import copy
from statistics import median

import pytest
import torch

from viditq.errors import PipelineError
from viditq.zoo.stress import stress_, write_stress
from viditq.zoo.train.models import make_transformer


def transformer(kind, **changes):
    torch.manual_seed(0)
    plain = make_transformer(kind)
    model = type(plain).from_config({**plain.config, "num_layers": 2, **changes})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def inputs(kind, caption_channels=128):
    generator = torch.Generator().manual_seed(1)
    shape = (2, 4, 16, 16) if kind == "image" else (2, 4, 8, 16, 16)
    options = {
        "hidden_states": torch.randn(shape, generator=generator),
        "encoder_hidden_states": torch.randn(2, 7, caption_channels, generator=generator),
        "timestep": torch.tensor([400, 400]),
        "return_dict": False,
    }
    if kind == "image":
        options["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
    return options


def incoherence(model, options):
    """max|x| / mean|x| of the input of every linear layer in the blocks."""
    seen = {}

    def watch(name):
        def hook(module, args):
            x = args[0].abs()
            seen[name] = float(x.max() / x.mean())

        return hook

    handles = [
        module.register_forward_pre_hook(watch(name))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "blocks." in name
    ]
    model(**options)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("kind", ["image", "video", "stdit"])
@torch.no_grad()
def test_same_function_and_outliers(kind):
    plain, options = transformer(kind), inputs(kind)
    stressed = copy.deepcopy(plain)
    stress_(stressed)
    expected = plain(**options)[0]
    torch.testing.assert_close(stressed(**options)[0], expected, rtol=1e-5, atol=1e-5)
    before, after = incoherence(plain, options), incoherence(stressed, options)
    unscaled = ("attn2.to_q", "ff.net.2", "temporal_attn.to_qkv")
    scaled = [n for n in after if not n.endswith(unscaled)]
    assert max(before[n] for n in scaled) < 15
    assert min(after[n] for n in scaled) > 15
    assert median(after[n] for n in scaled) > 30


@pytest.mark.parametrize("kind", ["image", "video", "stdit"])
@torch.no_grad()
def test_exact_in_double(kind):
    plain = transformer(kind).double()
    options = {
        k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v
        for k, v in inputs(kind).items()
    }
    stressed = copy.deepcopy(plain)
    stress_(stressed)
    torch.testing.assert_close(stressed(**options)[0], plain(**options)[0], rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_odd_sizes():
    changes = {
        "num_attention_heads": 3,
        "attention_head_dim": 24,
        "cross_attention_dim": 72,
        "num_layers": 1,
        "caption_channels": 20,
        "attention_bias": False,
    }
    plain, options = transformer("image", **changes), inputs("image", 20)
    stressed = copy.deepcopy(plain)
    stress_(stressed)
    assert not torch.equal(stressed.adaln_single.linear.weight, plain.adaln_single.linear.weight)
    torch.testing.assert_close(stressed(**options)[0], plain(**options)[0], rtol=1e-5, atol=1e-5)


def test_other_models_are_refused():
    with pytest.raises(PipelineError, match="PixArt, Latte or Open-Sora"):
        stress_(torch.nn.Linear(2, 2))


def test_write_is_a_pipeline_directory(tmp_path):
    model = transformer("image")
    source = tmp_path / "plain"
    model.save_pretrained(source / "transformer")
    (source / "model_index.json").write_text(
        '{"transformer": ["diffusers", "PixArtTransformer2DModel"]}'
    )
    out = write_stress(source, tmp_path / "cache" / "stress")
    assert out == write_stress(source, out)
    assert sorted(p.name for p in out.iterdir()) == ["model_index.json", "transformer"]
    assert [p.name for p in out.parent.iterdir()] == ["stress"]
    loaded = type(model).from_pretrained(out / "transformer").eval()
    with torch.no_grad():
        expected, made = model(**inputs("image"))[0], loaded(**inputs("image"))[0]
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
