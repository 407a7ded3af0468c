"""STDiT computes what Open-Sora computes."""

import pytest
import torch

import upstream
from viditq.models.stdit import STDiTTransformer3DModel


@pytest.fixture(scope="module")
def recorded():
    return upstream.recorded()


@pytest.fixture(scope="module")
def model():
    return upstream.stdit()


def call(model, recorded, mask):
    with torch.inference_mode():
        return model(
            recorded["call.x"],
            recorded["call.timestep"],
            recorded["call.y"].squeeze(1),
            recorded["call.mask"] if mask else None,
            return_dict=False,
        )[0]


@pytest.mark.parametrize(("mask", "output"), [(True, "output"), (False, "output_without_mask")])
def test_outputs_are_upstreams(model, recorded, mask, output):
    upstream.assert_same(call(model, recorded, mask), recorded[f"call.{output}"])


def test_positions_are_upstreams(model, recorded):
    tables = {"spatial_position": "pos_embed", "temporal_position": "pos_embed_temporal"}
    for ours, theirs in tables.items():
        expected = recorded[f"weights.{theirs}"][0]
        torch.testing.assert_close(getattr(model, ours), expected, rtol=0, atol=1e-6)


def test_padding_does_not_matter(model, recorded):
    changed = dict(recorded)
    padding = recorded["call.mask"][:, None, :, None] == 0
    changed["call.y"] = torch.where(padding, 7.0, recorded["call.y"])
    assert not torch.equal(changed["call.y"], recorded["call.y"])
    assert torch.equal(call(model, changed, mask=True), call(model, recorded, mask=True))


def test_saved_and_loaded_it_is_the_same(model, recorded, tmp_path):
    model.save_pretrained(tmp_path)
    again = STDiTTransformer3DModel.from_pretrained(tmp_path)
    assert torch.equal(call(again, recorded, mask=True), call(model, recorded, mask=True))
    assert again.config.caption_length == 7


def test_in_half_precision_it_stays_there(model, recorded):
    half = type(model).from_config(model.config)
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16)
    inputs = {n: t.bfloat16() if t.is_floating_point() else t for n, t in recorded.items()}
    output = call(half, inputs, mask=True)
    assert output.dtype == torch.bfloat16
    error = (output.float() - recorded["call.output"]).norm() / recorded["call.output"].norm()
    assert error < 0.02


def test_another_size_is_refused(model, recorded):
    smaller = {**recorded, "call.x": recorded["call.x"][..., :4]}
    with pytest.raises(ValueError, match=r"\(2, 4, 3, 8, 4\).*\(batch, 4, 3, 8, 8\)"):
        call(model, smaller, mask=True)


def test_it_is_one_graph(model, recorded):
    """Nothing in it waits for the device or leaves what ``torch.compile`` sees."""
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    expected = call(model, recorded, mask=True)
    torch.testing.assert_close(call(compiled, recorded, mask=True), expected)
