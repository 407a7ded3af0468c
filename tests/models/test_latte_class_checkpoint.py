"""Checkpoints of Latte for classes: what is read, and the sentence for each thing that is wrong."""

import pytest
import torch
from safetensors.torch import save_file

import upstream
from checks import refuses
from viditq.errors import InputError
from viditq.models.latte_class_checkpoint import latte_class_from
from viditq.models.published import read_tensors

WEIGHTS = upstream.weights(upstream.LATTE)


def convert(*, heads=3, **changed):
    """The recorded weights with some of them changed, ``None`` for taken away."""
    tensors = {**WEIGHTS, **changed}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    return latte_class_from(kept, "ucf101.pt", num_attention_heads=heads)


def test_every_number_arrives():
    arrived = convert().state_dict()
    assert len(arrived) == len(WEIGHTS)
    for ours, theirs in {
        "transformer_blocks.1.attn1.to_qkv.weight": "blocks.2.attn.qkv.weight",
        "temporal_transformer_blocks.0.ff.net.2.bias": "blocks.1.mlp.fc2.bias",
        "temporal_position": "temp_embed",
    }.items():
        assert torch.equal(arrived[ours], WEIGHTS[theirs])
    total = sum(tensor.double().sum() for tensor in WEIGHTS.values())
    assert sum(tensor.double().sum() for tensor in arrived.values()) == pytest.approx(float(total))


def test_positions_are_those_of_the_checkpoint():
    model = convert(temp_embed=torch.full((1, 3, 24), 2.0))
    assert (model.temporal_position == 2).all()


def test_sizes_follow_from_the_shapes():
    assert dict(convert().config) == {
        "num_attention_heads": 3,
        "attention_head_dim": 8,
        "num_layers": 2,
        "in_channels": 4,
        "out_channels": 8,
        "patch_size": 2,
        "sample_size": 8,
        "video_length": 3,
        "num_classes": 5,
    }
    assert upstream.latte_class(classes=False).config.num_classes == 0


def test_the_type_of_numbers_stays():
    model = convert(**{name: tensor.half() for name, tensor in WEIGHTS.items()})
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float16}


@pytest.mark.parametrize("form", ["safetensors", "averaged", "not averaged"])
def test_forms_of_the_file(tmp_path, form):
    path = tmp_path / ("ucf101.safetensors" if form == "safetensors" else "ucf101.pt")
    other = dict.fromkeys(WEIGHTS, torch.zeros(1))
    if form == "safetensors":
        save_file(WEIGHTS, path)
    elif form == "averaged":
        torch.save({"model": other, "ema": WEIGHTS}, path)
    else:
        torch.save({"model": WEIGHTS}, path)
    read = read_tensors(path)
    assert set(read) == set(WEIGHTS)
    assert all(torch.equal(read[name], tensor) for name, tensor in WEIGHTS.items())


QKV = "blocks.1.attn.qkv.weight"


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        ({QKV: None}, (f"lacks the tensor {QKV!r}", "1 of 53 missing")),
        ({QKV: torch.zeros(72, 23)}, (QKV, "(72, 23)", "(72, 24)")),
        ({"blocks.4.attn.qkv.bias": torch.zeros(72)}, ("5 blocks", "a temporal one for each")),
        ({"x_embedder.proj.weight": None}, ("'x_embedder.proj.weight'", "has none")),
        ({"x_embedder.proj.weight": torch.zeros(24, 4, 1, 2, 2)}, ("4 dimensions", "has 5")),
        ({"pos_embed": torch.zeros(1, 17, 24)}, ("pos_embed is (1, 17, 24)", "(1, 16, 24)")),
        (
            {"text_embedding_projection.1.weight": torch.zeros(24, 8)},
            ("holds 'text_embedding_projection.1.weight'", "Latte for classes does not have"),
        ),
    ],
)
def test_a_tensor_that_is_wrong(changed, facts):
    with refuses(InputError, "ucf101.pt", *facts):
        convert(**changed)


def test_heads_that_do_not_fit():
    with refuses(InputError, "ucf101.pt", "5 heads"):
        convert(heads=5)


@pytest.mark.parametrize("version", ["1.0", "1.2"])
def test_a_checkpoint_of_another_network(version):
    with refuses(InputError, "model.pth", "no checkpoint of Latte for classes"):
        latte_class_from(upstream.weights(version), "model.pth")


def test_a_width_that_cannot_be_told():
    with refuses(InputError, "ucf101.pt", "'temp_embed'", "has none"):
        convert(temp_embed=None)
