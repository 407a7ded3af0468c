"""STDiT3 computes what Open-Sora computes."""

import pytest
import torch

import upstream
from viditq.models.stdit3 import STDiT3Transformer3DModel

SIZE = {"height": 40, "width": 64}


@pytest.fixture(scope="module")
def recorded():
    return upstream.recorded("1.2")


@pytest.fixture(scope="module")
def model():
    return upstream.stdit3()


def call(model, recorded, *, mask=True, timestep=None, **changed):
    arguments = {
        "hidden_states": recorded["call.x"],
        "timestep": recorded["call.timestep"] if timestep is None else timestep,
        "encoder_hidden_states": recorded["call.y"].squeeze(1),
        "encoder_attention_mask": recorded["call.mask"] if mask else None,
        "fps": torch.tensor([24.0, 24.0]),
        **SIZE,
    }
    with torch.inference_mode():
        return model(**{**arguments, **changed}, return_dict=False)[0]


@pytest.mark.parametrize(("mask", "output"), [(True, "output"), (False, "output_without_mask")])
def test_outputs_are_upstreams(model, recorded, mask, output):
    """With a height that patches do not divide."""
    expected = recorded[f"call.{output}"]
    assert expected.shape == (2, 8, 3, 5, 8)
    upstream.assert_same(call(model, recorded, mask=mask), expected)


def test_given_frames_are_upstreams(model, recorded):
    """What upstream takes a mask for is a timestep of 0.

    Of the given frames themselves there is no output to compare: upstream normalizes them twice in
    its last layer, and its sampler discards them.
    """
    timestep = recorded["call.timestep"][:, None] * recorded["call.x_mask"]
    made = recorded["call.x_mask"]
    assert made.tolist() == [[True] * 3, [False, True, True]]
    expected, unlike = (
        recorded[f"call.{name}"].transpose(1, 2)[made] for name in ("output_with_x_mask", "output")
    )
    assert not torch.allclose(expected, unlike, atol=0.01)
    output = call(model, recorded, timestep=timestep).transpose(1, 2)[made]
    upstream.assert_same(output, expected)


def test_size_and_rate_matter(model, recorded):
    output = call(model, recorded)
    for changed in ({"height": 80}, {"fps": torch.tensor([24.0, 8.0])}):
        assert not torch.allclose(call(model, recorded, **changed)[1], output[1], atol=1e-3)


def test_saved_and_loaded_it_is_the_same(model, recorded, tmp_path):
    model.save_pretrained(tmp_path)
    again = STDiT3Transformer3DModel.from_pretrained(tmp_path)
    assert torch.equal(call(again, recorded), call(model, recorded))


def test_in_half_precision_it_stays_there(model, recorded):
    half = type(model).from_config(model.config)
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16)
    latents, captions = recorded["call.x"].bfloat16(), recorded["call.y"].squeeze(1).bfloat16()
    output = call(half, recorded, hidden_states=latents, encoder_hidden_states=captions)
    assert output.dtype == torch.bfloat16
    expected = recorded["call.output"]
    assert (output.float() - expected).norm() / expected.norm() < 0.03


def test_it_is_one_graph(model, recorded):
    """Nothing in it waits for the device or leaves what ``torch.compile`` sees."""
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(call(compiled, recorded), call(model, recorded))
