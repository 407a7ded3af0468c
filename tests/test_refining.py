"""Refining brings the output nearer to the float one, in the same codes' grid, and goes on."""

import copy

import pytest
import torch

from checks import refuses
from viditq import pipelines, refining
from viditq.calibration import CalibrationSet, used_output
from viditq.errors import CalibrationError, PlanError
from viditq.nn import QuantLinear
from viditq.quantizers import unpack
from viditq.recipe import Refine, load_recipe
from viditq.refining import refine_
from viditq.streaming import quantize_transformer_

PROMPTS = ("a red star", "a small blue square moving left over green", "a circle", "a heart")
SETTINGS = Refine(updates=40, samples=4, batch=4)


class Killed(BaseException):
    """As Ctrl-C and SIGTERM: nothing may catch it."""


@pytest.fixture(scope="module", params=["image", "video"])
def source(request, floats):
    return floats[request.param]


@pytest.fixture(scope="module")
def lessons(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lessons") / "r"
    pipe = pipelines.load(source)
    return pipelines.record(pipe, PROMPTS, folder, steps=3, kept=3, batch_size=2)


@pytest.fixture(scope="module")
def started(source, tmp_path_factory):
    """The float transformer and what ``w4a8`` makes of it."""
    pipe, folder = pipelines.load(source), tmp_path_factory.mktemp("started")
    recorded = pipelines.record(pipe, PROMPTS[:2], folder / "r", steps=2, kept=2)
    model = copy.deepcopy(pipe.transformer)
    quantize_transformer_(model, load_recipe("w4a8"), recorded, folder)
    return pipe.transformer, model


@pytest.fixture
def models(started):
    return started[0], copy.deepcopy(started[1])


def error(model, reference, lessons: CalibrationSet) -> float:
    """Squared error of what samplers use of the output, over all recorded calls."""
    with torch.no_grad():
        return sum(
            float((output(model, call) - output(reference, call)).square().mean())
            for call in lessons
        )


def output(model, call) -> torch.Tensor:
    return used_output(model, model(**call.arguments)[0])


def states(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_the_output_comes_nearer_to_the_float_one(models, lessons, tmp_path):
    reference, model = models
    before, start = error(model, reference, lessons), states(model)
    gained = refine_(model, reference, lessons, Refine(updates=150, batch=8), tmp_path)
    assert gained > 0
    assert error(model, reference, lessons) < 0.7 * before
    quantized = {n for n, m in model.named_modules() if isinstance(m, QuantLinear)}
    changed = {name for name, t in start.items() if not torch.equal(t, model.state_dict()[name])}
    in_layers = {n.rpartition(".")[2] for n in changed if n.rpartition(".")[0] in quantized}
    assert {"scale", "smooth", "bias"} <= in_layers <= {"weight", "scale", "smooth", "bias"}
    floats = {name for name in changed if name.rpartition(".")[0] not in quantized}
    assert any("scale_shift_table" in name for name in floats)
    assert any(name.startswith("proj_out") for name in floats)


@pytest.mark.parametrize(
    ("device", "updates", "stay"),
    [("cpu", 60, True), pytest.param("cuda", 300, False, marks=pytest.mark.gpu)],
)
def test_trellis_codes_learn_on_a_gpu_and_the_rest_everywhere(
    source, lessons, tmp_path, device, updates, stay
):
    pipe = pipelines.load(source)
    recorded = pipelines.record(pipe, PROMPTS[:2], tmp_path / "r", steps=2, kept=2)
    model = copy.deepcopy(pipe.transformer)
    quantize_transformer_(model, load_recipe("w4a8-tcq"), recorded, tmp_path / "q")
    before, start = error(model, pipe.transformer, lessons), states(model)
    model.to(device), pipe.transformer.to(device)
    refine_(model, pipe.transformer, lessons, Refine(updates=updates, batch=8), tmp_path / "l")
    model.to("cpu"), pipe.transformer.to("cpu")
    assert error(model, pipe.transformer, lessons) < 0.95 * before
    codes = {name for name, tensor in start.items() if tensor.dtype == torch.uint8}
    assert codes
    assert all(torch.equal(start[name], model.state_dict()[name]) for name in codes) == stay


def test_layers_stay_layers_in_their_format(models, lessons, tmp_path):
    reference, model = models
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantLinear)}
    refine_(model, reference, lessons, SETTINGS, tmp_path)
    assert layers == {n: m for n, m in model.named_modules() if isinstance(m, QuantLinear)}
    for layer in layers.values():
        fmt = layer.plan.weight_format
        codes = unpack(layer.weight, fmt, layer.in_features)
        assert fmt.qmin <= codes.min() and codes.max() <= fmt.qmax
        assert layer.scale.min() > 0
        assert not any(p.requires_grad for p in layer.parameters())


def test_readers_of_one_input_stay_smoothed_alike(models, lessons, tmp_path):
    """Or blocks could not be fused any more."""
    reference, model = models
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantLinear)}
    readers = [next(n for n in layers if n.endswith(f"0.attn1.{p}")) for p in ("to_q", "to_k")]
    before = layers[readers[0]].smooth.clone()
    assert torch.equal(before, layers[readers[1]].smooth)
    refine_(model, reference, lessons, SETTINGS, tmp_path)
    assert torch.equal(layers[readers[0]].smooth, layers[readers[1]].smooth)
    assert not torch.equal(layers[readers[0]].smooth, before)


def test_the_float_model_is_left_alone(models, lessons, tmp_path):
    reference, model = models
    before = states(reference)
    wanted = [p.requires_grad for p in reference.parameters()]
    refine_(model, reference, lessons, SETTINGS, tmp_path)
    assert same(before, states(reference))
    assert wanted == [p.requires_grad for p in reference.parameters()]


@pytest.mark.parametrize("last", [1, 9, 10, 25])
def test_a_killed_run_goes_on_and_ends_alike(models, lessons, tmp_path, monkeypatch, last):
    monkeypatch.setattr(refining, "SAVE_EVERY", 10)
    reference, model = models
    model.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))  # without a gradient
    start, whole = states(model), copy.deepcopy(model)
    refine_(whole, reference, lessons, SETTINGS, tmp_path / "whole")

    def killing(items, description, total=None):
        for number, item in enumerate(items):
            if number == last:
                raise Killed
            yield item

    with pytest.raises(Killed):
        refine_(model, reference, lessons, SETTINGS, tmp_path / "r", track=killing)
    assert same(start, states(model))
    counted = []

    def counting(items, description, total=None):
        counted.append((description, total))
        return iter(items)

    refine_(model, reference, lessons, SETTINGS, tmp_path / "r", track=counting)
    assert counted == [("refine", 40 - last // 10 * 10)]
    assert same(states(whole), states(model))


def test_other_settings_begin_anew(models, lessons, tmp_path, monkeypatch):
    monkeypatch.setattr(refining, "SAVE_EVERY", 1)
    reference, model = models
    first = copy.deepcopy(model)
    refine_(first, reference, lessons, Refine(updates=2, batch=2), tmp_path / "a")
    refine_(copy.deepcopy(model), reference, lessons, Refine(updates=3, batch=2), tmp_path / "b")
    refine_(model, reference, lessons, Refine(updates=2, batch=2), tmp_path / "b")
    assert same(states(first), states(model))


def test_what_another_recipe_left_is_not_gone_on_from(models, lessons, tmp_path, monkeypatch):
    monkeypatch.setattr(refining, "SAVE_EVERY", 1)
    reference, model = models
    settings, other = Refine(updates=2, batch=2), copy.deepcopy(model)
    for layer in other.modules():
        if isinstance(layer, QuantLinear):
            layer.weight.data = layer.weight.flip(0)
    alone = copy.deepcopy(model)
    refine_(alone, reference, lessons, settings, tmp_path / "a")
    refine_(other, reference, lessons, settings, tmp_path / "b")
    refine_(model, reference, lessons, settings, tmp_path / "b")
    assert same(states(alone), states(model))


def test_a_damaged_state_is_named_and_the_model_stays(models, lessons, tmp_path):
    reference, model = models
    start = states(model)
    (tmp_path / "refined.safetensors").write_bytes(b"no tensors")
    with refuses(CalibrationError, "refined.safetensors"):
        refine_(model, reference, lessons, SETTINGS, tmp_path)
    assert same(start, states(model))


def test_guidance_joins_the_errors_of_both_branches():
    without, with_prompt = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [2.0]])
    both = torch.cat([without, with_prompt])
    assert refining._squares(both, 2, 4.5).tolist() == [100 + 1 + 9, 4 + 4 + 4]
    assert refining._squares(both, 4, 4.5).tolist() == [1, 4, 9, 4]


def test_calls_are_put_together_row_by_row():
    def call(rows: int, fill: float):
        return {
            "hidden_states": torch.full((rows, 2), fill),
            "added": {"size": None, "table": torch.arange(5)},
            "pair": (torch.full((rows,), fill), 3),
        }

    joint = refining._together([call(2, 1.0), call(4, 2.0)], [2, 4])
    assert joint["hidden_states"].tolist() == [[1, 1]] * 2 + [[2, 2]] * 4
    assert joint["pair"][0].tolist() == [1] * 2 + [2] * 4 and joint["pair"][1] == 3
    assert joint["added"]["size"] is None and joint["added"]["table"].tolist() == [0, 1, 2, 3, 4]
    with refuses(CalibrationError, "scale"):
        refining._together([{"scale": 1.0}, {"scale": 2.0}], [2, 2])


def test_what_has_no_codes_is_refused(started, lessons, tmp_path):
    with refuses(PlanError, "no quantized layers"):
        refine_(copy.deepcopy(started[0]), started[0], lessons, SETTINGS, tmp_path)


@pytest.mark.parametrize("preset", ["w4a8-svdquant", "w8a8-naive", "w8a8-fp8"])
def test_layers_of_other_kinds_are_refused(source, lessons, tmp_path, preset):
    pipe = pipelines.load(source)
    recorded = pipelines.record(pipe, PROMPTS[:1], tmp_path / "r", steps=1, kept=1)
    model = copy.deepcopy(pipe.transformer)
    quantize_transformer_(model, load_recipe(preset), recorded, tmp_path / "q")
    with refuses(PlanError, "cannot be refined"):
        refine_(model, pipe.transformer, lessons, SETTINGS, tmp_path)
