"""Checkpoints of Open-Sora: what is read, and the sentence for each thing that is wrong."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

import upstream
from checks import refuses
from viditq.errors import InputError
from viditq.models.opensora_checkpoint import is_stdit3, stdit3_from, stdit_from
from viditq.models.published import read_tensors


@pytest.fixture
def checkpoint(tmp_path):
    torch.save(upstream.weights(), tmp_path / "model.pth")
    return tmp_path / "model.pth"


def convert(**changed):
    """The recorded weights with some of them changed, ``None`` for taken away."""
    tensors = {**upstream.weights(), **changed}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    return stdit_from(kept, "model.pth", **upstream.options())


def test_every_number_arrives(checkpoint):
    model = stdit_from(read_tensors(checkpoint), "model.pth", **upstream.options())
    arrived = model.state_dict()
    weights = {n: t for n, t in upstream.weights().items() if not n.startswith("pos_embed")}
    assert len(arrived) == len(weights)
    assert torch.equal(
        arrived["transformer_blocks.1.temporal_attn.to_qkv.weight"],
        weights["blocks.1.attn_temp.qkv.weight"],
    )
    total = sum(tensor.double().sum() for tensor in weights.values())
    assert sum(tensor.double().sum() for tensor in arrived.values()) == pytest.approx(float(total))
    assert not model.training


def test_sizes_follow_from_the_shapes():
    config = convert().config
    assert {name: config[name] for name in ("num_layers", "in_channels", "out_channels")} == {
        "num_layers": 2,
        "in_channels": 4,
        "out_channels": 8,
    }
    assert (config.attention_head_dim, config.num_attention_heads) == (8, 3)
    assert (config.caption_channels, config.caption_length, config.patch_size) == (12, 7, 2)


def test_the_type_of_numbers_stays():
    halves = {name: tensor.half() for name, tensor in upstream.weights().items()}
    model = stdit_from(halves, "model.pth", **upstream.options())
    assert {p.dtype for p in model.parameters()} == {torch.float16}


@pytest.mark.parametrize("form", ["safetensors", "training state", "legacy"])
def test_other_forms_of_the_file(tmp_path, form):
    weights = upstream.weights()
    if form == "safetensors":
        save_file(weights, path := tmp_path / "model.safetensors")
    elif form == "legacy":
        torch.save(weights, path := tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    else:
        torch.save({"ema": weights, "step": 3}, path := tmp_path / "model.pth")
    read = read_tensors(path)
    assert set(read) == set(weights)
    assert all(torch.equal(read[name], tensor) for name, tensor in weights.items())


class Harmful:
    def __reduce__(self):
        return exec, ("raise SystemError('code was run')",)


@pytest.mark.parametrize("content", [Harmful(), {"blocks.0.scale_shift_table": Harmful()}])
@pytest.mark.parametrize(
    "how", [torch.save, lambda it, file: file.write_bytes(pickle.dumps(it, 2))]
)
def test_code_in_a_file_is_not_run(tmp_path, content, how):
    how(content, tmp_path / "model.pth")
    with refuses(InputError, "model.pth", "run code"):
        read_tensors(tmp_path / "model.pth")


@pytest.mark.parametrize("content", [3, [torch.zeros(1)], {"a": 3}, {3: torch.zeros(1)}], ids=str)
def test_no_dictionary_of_tensors(tmp_path, content):
    torch.save(content, tmp_path / "model.pth")
    with refuses(InputError, "model.pth", "not a dictionary of tensors"):
        read_tensors(tmp_path / "model.pth")


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x80", b"PK\x03\x04 cut off", b"no checkpoint"])
def test_no_checkpoint(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with refuses(InputError, name):
        read_tensors(tmp_path / name)


def test_a_file_that_is_cut_off(checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    with refuses(InputError, "model.pth"):
        read_tensors(checkpoint)


def test_no_file(tmp_path):
    with refuses(InputError, "There is no file", "model.pth"):
        read_tensors(tmp_path / "model.pth")


QKV = "blocks.1.attn.qkv.weight"


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        ({QKV: None}, (f"lacks the tensor {QKV!r}", "1 of 54 missing")),
        ({QKV: torch.zeros(72, 23)}, (QKV, "(72, 23)", "(72, 24)")),
        ({QKV: torch.zeros(72, 24, dtype=torch.int8)}, (QKV, "torch.int8")),
        ({"blocks.3.attn.qkv.bias": torch.zeros(72)}, ("lacks the tensor 'blocks.2.",)),
        ({"blocks.1.more": torch.zeros(1)}, ("holds 'blocks.1.more'", "does not have")),
        ({"x_embedder.proj.weight": None}, ("'x_embedder.proj.weight'", "has none")),
        ({"x_embedder.proj.weight": torch.zeros(24, 4, 2, 2)}, ("5 dimensions", "has 4")),
        ({"x_embedder.proj.weight": torch.zeros(24, 4, 2, 2, 2)}, ("patches of 2 frames",)),
    ],
)
def test_a_tensor_that_is_wrong(changed, facts):
    with refuses(InputError, "model.pth", *facts):
        convert(**changed)


@pytest.mark.parametrize(
    ("option", "value", "fact"),
    [("num_attention_heads", 5, "5 heads"), ("sample_size", 7, "7×7"), ("sample_size", 0, "0×0")],
)
def test_an_option_that_does_not_fit(option, value, fact):
    with refuses(InputError, "model.pth", fact):
        stdit_from(upstream.weights(), "model.pth", **{**upstream.options(), option: value})


class TestVersion12:
    def test_sizes_follow_from_the_shapes(self):
        config = upstream.stdit3().config
        assert (config.num_layers, config.attention_head_dim, config.caption_length) == (2, 8, 7)

    def test_which_version_it_is(self):
        assert is_stdit3(upstream.weights("1.2"))
        assert not is_stdit3(upstream.weights())

    def test_the_other_version_is_refused(self):
        with refuses(InputError, "model.pth", "no checkpoint of Open-Sora 1.2", "'spatial_blocks'"):
            stdit3_from(upstream.weights(), "model.pth", num_attention_heads=3)
        with refuses(InputError, "model.pth", "no checkpoint of Open-Sora 1.0", "'blocks'"):
            stdit_from(upstream.weights("1.2"), "model.pth", num_attention_heads=3)

    def test_a_tensor_is_missing(self):
        tensors = dict(upstream.weights("1.2"))
        del tensors["temporal_blocks.1.attn.k_norm.weight"]
        with refuses(InputError, "'temporal_blocks.1.attn.k_norm.weight'", "1 of "):
            stdit3_from(tensors, "model.pth", num_attention_heads=3)
