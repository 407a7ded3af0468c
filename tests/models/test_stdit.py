"""STDiT computes what Open-Sora computes.

``opensora-1.0.safetensors`` was made with the code of hpcaitech/Open-Sora v1.0.0 itself, in fp32
without its accelerated kernels: a network of two blocks (``config`` in the file's metadata has the
arguments of ``STDiT``) with random weights, its outputs on two captions, one of them padded, and
two samples of its scheduler ``iddpm``, 4 steps with guidance 4, of which the noise was kept. Of
what that code imports only xformers' attention was replaced, by a softmax within each caption.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from viditq.models.opensora_checkpoint import stdit_from
from viditq.models.stdit import STDiTTransformer3DModel

UPSTREAM = Path(__file__).with_name("opensora-1.0.safetensors")


@pytest.fixture(scope="module")
def recorded():
    return load_file(UPSTREAM)


def upstream_model(recorded):
    """The network that upstream's outputs are of."""
    with safe_open(UPSTREAM, "pt") as file:
        config = json.loads(file.metadata()["config"])
    weights = {
        n.removeprefix("weights."): t for n, t in recorded.items() if n.startswith("weights")
    }
    frames, size, _ = config["input_size"]
    return stdit_from(
        weights,
        "the fixture",
        num_attention_heads=config["num_heads"],
        sample_size=size,
        video_length=frames,
        spatial_interpolation_scale=config["space_scale"],
        temporal_interpolation_scale=config["time_scale"],
    )


@pytest.fixture(scope="module")
def model(recorded):
    return upstream_model(recorded)


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
    torch.testing.assert_close(
        call(model, recorded, mask), recorded[f"call.{output}"], rtol=1e-5, atol=1e-5
    )


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
