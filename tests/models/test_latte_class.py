"""Latte for classes computes what its authors' code computes."""

import pytest
import torch

import upstream
from viditq.models.latte_class import LatteClassTransformer3DModel


@pytest.fixture(scope="module")
def recorded():
    return upstream.recorded(upstream.LATTE)


@pytest.fixture(scope="module")
def model():
    return upstream.latte_class()


def call(model, recorded, *, classes=True):
    """(B, T, C, H, W) in and out, as upstream has it."""
    with torch.inference_mode():
        return model(
            recorded["call.x"].transpose(1, 2),
            recorded["call.timestep"],
            recorded["call.y"] if classes else None,
            return_dict=False,
        )[0].transpose(1, 2)


@pytest.mark.parametrize(("classes", "output"), [(True, "output"), (False, "output_without_class")])
def test_outputs_are_upstreams(recorded, classes, output):
    found = call(upstream.latte_class(classes=classes), recorded, classes=classes)
    upstream.assert_same(found, recorded[f"call.{output}"])


def test_the_class_matters(model, recorded):
    assert recorded["call.y"].tolist() == [3, model.null_class]
    other = {**recorded, "call.y": torch.tensor([2, model.null_class])}
    first, second = (call(model, other) - call(model, recorded)).abs().amax((1, 2, 3, 4))
    assert first > 0.1
    assert second == 0


def test_positions_are_upstreams(recorded):
    """Those that are computed here, which the checkpoint's then replace."""
    ours = LatteClassTransformer3DModel.from_config(upstream.latte_class().config)
    for name, theirs in {
        "spatial_position": "pos_embed",
        "temporal_position": "temp_embed",
    }.items():
        expected = recorded[f"weights.{theirs}"]
        torch.testing.assert_close(getattr(ours, name), expected, rtol=0, atol=1e-6)


def test_saved_and_loaded_it_is_the_same(model, recorded, tmp_path):
    model.save_pretrained(tmp_path)
    again = LatteClassTransformer3DModel.from_pretrained(tmp_path)
    assert torch.equal(call(again, recorded), call(model, recorded))
    assert again.config.num_classes == 5


def test_in_half_precision_it_stays_there(model, recorded):
    half = type(model).from_config(model.config)
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16)
    inputs = {n: t.bfloat16() if t.is_floating_point() else t for n, t in recorded.items()}
    output = call(half, inputs)
    assert output.dtype == torch.bfloat16
    error = (output.float() - recorded["call.output"]).norm() / recorded["call.output"].norm()
    assert error < 0.02


def test_another_size_is_refused(model, recorded):
    smaller = {**recorded, "call.x": recorded["call.x"][..., :4]}
    with pytest.raises(ValueError, match=r"\(2, 4, 3, 8, 4\).*\(batch, 4, 3, 8, 8\)"):
        call(model, smaller)


def test_a_class_where_there_are_none_and_none_where_there_are(model, recorded):
    with pytest.raises(ValueError, match="knows 5 classes, and class_labels is missing"):
        call(model, recorded, classes=False)
    with pytest.raises(ValueError, match="knows 0 classes, and class_labels is given"):
        call(upstream.latte_class(classes=False), recorded)


def test_it_is_one_graph(model, recorded):
    """Nothing in it waits for the device or leaves what ``torch.compile`` sees."""
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(call(compiled, recorded), call(model, recorded))
