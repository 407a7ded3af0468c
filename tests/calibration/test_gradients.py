"""The gradients' moments are those of the model's output, call by call on one level."""

import pytest
import torch

from checks import refuses
from viditq import pipelines
from viditq.calibration import move, observe_gradients
from viditq.errors import CalibrationError
from viditq.models import adapter_for


@pytest.fixture(scope="module", params=["image", "video"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(floats, kind):
    return pipelines.load(floats[kind]).transformer


@pytest.fixture(scope="module")
def layers(model):
    """The first and the last of the model."""
    names = list(adapter_for(model).layers(model))
    return [names[0], names[-1]]


@pytest.fixture(scope="module")
def stats(model, layers, recorded, kind, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradients") / "g"
    return observe_gradients(model, recorded(kind), folder)


def expected(model, calls, name: str) -> torch.Tensor:
    """The long way: one gradient per call, from the same random directions."""
    generator, moments = torch.Generator().manual_seed(0), []
    for call in calls:
        seen = {}
        last = list(adapter_for(model).layers(model))[-1]

        def keep(module, arguments, output, seen=seen):
            seen[module] = output.requires_grad_()

        modules = [model.get_submodule(each) for each in dict.fromkeys((name, last))]
        handles = [module.register_forward_hook(keep) for module in modules]
        output = model(**{**move(call.arguments, "cpu"), "return_dict": False})[0]
        for handle in handles:
            handle.remove()
        used = output[:, : output.shape[1] // 2]  # these models predict a variance too
        direction = torch.randn(used.shape, generator=generator)
        gradients = torch.autograd.grad(used, [seen[module] for module in modules], direction)
        rows = gradients[0].reshape(-1, gradients[0].shape[-1]).double()
        moments.append(rows.T @ rows / gradients[-1].double().square().sum())
    return torch.stack(moments).mean(0)


def test_against_the_long_way(model, layers, recorded, kind, stats):
    assert list(stats) == list(adapter_for(model).layers(model))
    for name in layers:
        torch.testing.assert_close(
            stats[name].double(), expected(model, recorded(kind), name), rtol=1e-3, atol=1e-6
        )
    assert stats[layers[-1]].trace().item() == pytest.approx(1.0, rel=1e-4)


def test_the_model_is_left_as_it_was(model, stats):
    assert stats
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_small_memory_and_checkpointed_activations_change_nothing(
    model, layers, recorded, kind, stats, tmp_path, monkeypatch
):
    from viditq.calibration import gradients, large

    monkeypatch.setattr(large, "LARGE", 0)
    monkeypatch.setattr(gradients, "GRADIENT_EVERY", 1)
    other = observe_gradients(model, recorded(kind), tmp_path, memory_bytes=1)
    for name in layers:
        torch.testing.assert_close(other[name], stats[name])
    assert not model.is_gradient_checkpointing


def test_finished_layers_are_not_made_again(model, layers, recorded, kind, stats, tmp_path):
    first = observe_gradients(model, recorded(kind), tmp_path)
    (tmp_path / f"{layers[1]}.safetensors").unlink()
    kept = (tmp_path / f"{layers[0]}.safetensors").stat().st_mtime_ns
    with refuses(CalibrationError, layers[1], "observe again"):
        first[layers[1]]
    again = observe_gradients(model, recorded(kind), tmp_path)
    assert (tmp_path / f"{layers[0]}.safetensors").stat().st_mtime_ns == kept
    assert torch.equal(again[layers[1]], stats[layers[1]])


def test_of_another_model(model, layers, recorded, kind, tmp_path):
    weight = model.get_submodule(layers[0]).weight
    with torch.no_grad():
        weight.mul_(1.5)
    try:
        with refuses(CalibrationError, "another model"):
            observe_gradients(model, recorded(kind), tmp_path)
    finally:
        with torch.no_grad():
            weight.div_(1.5)
