"""Padding of captions does not count, in whatever layers of whatever family it turns up."""

import pytest
import torch

from tiny_transformers import CASES, padded
from viditq.calibration import (
    CalibrationInfo,
    CalibrationSet,
    model_fingerprint,
    observe,
    pad_captions,
    trim_captions,
    valid_tokens,
)
from viditq.models import adapter_for

MASKS = {"qwen-image": "encoder_hidden_states_mask"}
MASKED = (
    *("pixart", "stdit", "stdit3", "ltx", "sana"),
    *("hunyuan-video", "hunyuan-video, image to video", "qwen-image"),
)
TEXT = ("attn2.to_k", "attn2.to_v", "add_", "to_add_out", "ff_context", "txt_mlp")


@pytest.fixture(params=MASKED)
def case(request):
    return CASES[request.param]


def calls(case, length=5):
    """Two calls; the second caption is shorter than ``length``."""
    found = []
    for seed in (0, 1):
        inputs = case.inputs(seed)
        name = next((n for n in MASKS.values() if n in inputs), "encoder_attention_mask")
        mask = torch.cat([torch.ones(2, length - 5), padded()["encoder_attention_mask"]], 1)
        captions = torch.randn(2, length, 16)
        found.append(inputs | {name: mask.long(), "encoder_hidden_states": captions})
    return found


def observed(model, inputs, folder):
    info = CalibrationInfo(
        source="random",
        model=model_fingerprint(model),
        prompts=("a red star",),
        num_steps=len(inputs),
        steps=tuple(range(len(inputs))),
        guidance=1.0,
        seed=0,
    )
    recorded = CalibrationSet.create(folder / "recorded", info)
    recorded.write_prompt(0, list(enumerate(inputs)))
    return observe(model, recorded, folder / "stats")


@torch.inference_mode()
def valid_inputs(model, inputs, name):
    """(calls, M, K): what the layer reads, by hand without the padding at the captions' ends."""
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda module, arguments: seen.append(arguments[0].clone())
    )
    for arguments in inputs:
        model(**arguments)
    handle.remove()
    joint, text = name.startswith("single"), any(part in name for part in TEXT)
    padding = 2 if joint or text else 0
    return torch.stack([torch.cat([x[0], x[1, : x.shape[1] - padding]]) for x in seen]).double()


@pytest.mark.parametrize("name", MASKED[3:])
def test_statistics_are_those_of_valid_tokens(name, tmp_path):
    case = CASES[name]
    model, inputs = case.model(), calls(case)
    stats = observed(model, inputs, tmp_path)
    for layer in adapter_for(model).layers(model):
        x, found = valid_inputs(model, inputs, layer), stats[layer]
        tolerance = {"rtol": 1e-4, "atol": 1e-5}
        assert found.count.item() == x.shape[0] * x.shape[1], layer
        torch.testing.assert_close(found.step_amax.double(), x.abs().amax(1), **tolerance)
        x = x.flatten(0, 1)
        torch.testing.assert_close(found.mean.double(), x.mean(0), **tolerance)
        torch.testing.assert_close(found.second_moment.double(), x.T @ x / len(x), **tolerance)


def test_what_stands_in_the_padding_changes_nothing(case, tmp_path):
    model, inputs = case.model(), calls(case)
    loud = [dict(arguments) for arguments in inputs]
    for arguments in loud:
        captions = arguments["encoder_hidden_states"].clone()
        captions[1, -2:] = 100 * torch.randn(2, 16)
        arguments["encoder_hidden_states"] = captions
    quiet, other = (
        observed(model, given, tmp_path / folder)
        for given, folder in ((inputs, "quiet"), (loud, "loud"))
    )
    for layer in adapter_for(model).layers(model):
        for field, tensor in vars(quiet[layer]).items():
            same = getattr(other[layer], field)
            torch.testing.assert_close(tensor, same, rtol=1e-4, atol=1e-5, msg=f"{layer} {field}")


def test_an_image_as_long_as_the_caption(tmp_path):
    """Of two inputs of one shape, only the caption is padded."""
    case = CASES["qwen-image"]
    model, inputs = case.model(), calls(case, length=16)
    stats = observed(model, inputs, tmp_path)
    first = "transformer_blocks.0"
    assert stats[f"{first}.attn.to_q"].count.item() == 2 * (16 + 16)
    assert stats[f"{first}.attn.add_q_proj"].count.item() == 2 * (16 + 14)


def test_masks_that_say_nothing():
    x, mask = torch.randn(2, 5, 3), torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert valid_tokens(x, mask).tolist() == [[True] * 5, [True, True, True, False, False]]
    assert valid_tokens(x, None) is None
    assert valid_tokens(x, torch.ones(2, 6)) is None  # of more tokens
    assert valid_tokens(x.repeat(2, 1, 1), mask) is None  # of another batch
    assert valid_tokens(x, mask[:, None]) is None  # added to attention


def captioned(counted: list[int], length: int) -> dict[str, torch.Tensor]:
    mask = torch.arange(length)[None] < torch.tensor(counted)[:, None]
    return {
        "encoder_hidden_states": torch.randn(len(counted), length, 3),
        "encoder_attention_mask": mask.float(),
        "timestep": torch.arange(2),
    }


class TestTrim:
    def test_what_is_padding_in_every_row_goes(self):
        call = captioned([2, 4], 7)
        trimmed = trim_captions(call)
        assert torch.equal(trimmed["encoder_hidden_states"], call["encoder_hidden_states"][:, :4])
        assert trimmed["encoder_attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
        assert trimmed["timestep"] is call["timestep"]
        assert call["encoder_hidden_states"].shape == (2, 7, 3)

    @pytest.mark.parametrize("counted", [[0, 0], [7, 1]], ids=["nothing", "everything"])
    def test_nothing_goes_where_nothing_or_everything_counts(self, counted):
        call = captioned(counted, 7)
        assert trim_captions(call)["encoder_hidden_states"].shape == (2, 7, 3)

    def test_without_a_mask_of_the_captions_all_stays(self):
        call = captioned([2, 4], 7)
        for changed in (
            call | {"encoder_attention_mask": None},
            call | {"encoder_attention_mask": torch.zeros(2, 1, 7)},
            call | {"encoder_attention_mask": torch.ones(2, 9)},
        ):
            assert trim_captions(changed)["encoder_hidden_states"].shape == (2, 7, 3)

    def test_the_model_says_the_same(self):
        case = CASES["pixart"]
        model, call = case.model(), case.inputs()
        call |= captioned([2, 3], 5) | {"encoder_hidden_states": torch.randn(2, 5, 16)}
        call["timestep"] = case.inputs()["timestep"]
        trimmed = trim_captions(call)
        assert trimmed["encoder_hidden_states"].shape == (2, 3, 16)
        with torch.no_grad():
            torch.testing.assert_close(model(**trimmed)[0], model(**call)[0])


def test_trimmed_captions_are_padded_to_the_longest():
    calls = [captioned([2, 4], 7), captioned([1, 1], 7), captioned([3, 3], 3)]
    calls[2]["encoder_attention_mask"] = None
    first, second, third = pad_captions([trim_captions(call) for call in calls])
    assert (
        first["encoder_hidden_states"].shape == second["encoder_hidden_states"].shape == (2, 4, 3)
    )
    assert second["encoder_attention_mask"].tolist() == [[1, 0, 0, 0]] * 2
    assert not second["encoder_hidden_states"][:, 1:].any()
    assert third["encoder_hidden_states"] is calls[2]["encoder_hidden_states"]
