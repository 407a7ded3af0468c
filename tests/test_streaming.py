"""Layers window by window: the result is that of all at once, and an interrupted run goes on."""

import pytest
import torch

from checks import refuses
from viditq import pipelines, streaming
from viditq.calibration import observe, observe_gradients
from viditq.convert import quantize_
from viditq.errors import CalibrationError, PlanError
from viditq.models import adapter_for
from viditq.planning import make_plan
from viditq.recipe import Recipe, load_recipe
from viditq.streaming import quantize_transformer_

PROMPTS = ("a red star", "a small blue square moving left over green")
ONE_INPUT = 1
"""Bytes that nothing fits into, so that every input has a window of its own."""


class Killed(BaseException):
    """As Ctrl-C and SIGTERM: nothing may catch it."""


@pytest.fixture(scope="module", params=["image", "video"])
def source(request, floats):
    return floats[request.param]


@pytest.fixture(scope="module")
def recorded(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded") / "r"
    return pipelines.record(pipelines.load(source), PROMPTS, folder, steps=2, kept=2)


@pytest.fixture
def model(source):
    return pipelines.load(source).transformer


def recipe() -> Recipe:
    return load_recipe("w4a8")


@pytest.fixture(scope="module")
def whole(source, recorded, tmp_path_factory):
    """State and plan by the four steps, each over the whole model."""
    model, folder = pipelines.load(source).transformer, tmp_path_factory.mktemp("whole")
    stats = observe(model, recorded, folder / "s")
    gradients = observe_gradients(model, recorded, folder / "g")
    plan = make_plan(model, recipe(), stats, gradients)
    diagnostics = quantize_(model, plan, stats, gradients)
    return model.state_dict(), plan, diagnostics


def assert_same(model, made, whole) -> None:
    state, plan, diagnostics = whole
    assert made == (plan, diagnostics)
    assert list(made[0].layers) == list(plan.layers)
    assert list(model.state_dict()) == list(state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("memory_bytes", [None, 40_000, ONE_INPUT])
def test_windows_do_not_change_the_result(model, recorded, tmp_path, whole, memory_bytes):
    made = quantize_transformer_(model, recipe(), recorded, tmp_path, memory_bytes=memory_bytes)
    assert_same(model, made, whole)
    assert not list(tmp_path.rglob("*.part"))
    assert {path.name for path in (tmp_path / "stats").iterdir()} == {"stats.json"}


def test_what_is_seen_again_fast_stays_in_memory(model, recorded, tmp_path, whole, monkeypatch):
    monkeypatch.setattr(streaming, "_observes_fast", lambda _: True)
    made = quantize_transformer_(model, recipe(), recorded, tmp_path, memory_bytes=40_000)
    assert_same(model, made, whole)
    files = {path.name for kind in ("stats", "gradients") for path in (tmp_path / kind).iterdir()}
    assert files == {"stats.json", "gradients.json", "levels.safetensors"}


def test_statistics_are_kept_where_they_are_wanted(model, recorded, tmp_path):
    kept = tmp_path / "kept"
    inputs = {info.group for info in adapter_for(model).layers(model).values()}
    quantize_transformer_(model, recipe(), recorded, tmp_path / "r", statistics=kept)
    assert len(list((kept / "stats").glob("*.safetensors"))) == len(inputs)
    assert {path.name for path in (tmp_path / "r").iterdir()} == {"rounded"}


@pytest.mark.parametrize("stage", ["observe", "gradients", "plan", "quantize"])
def test_killed_in_a_window_it_goes_on(model, source, recorded, tmp_path, whole, stage):
    def killer(items, description, total=None):
        for item in items:
            # "gradients 1/3 2/14": the first of three passes in the second of fourteen windows
            if description.startswith(stage) and description.split()[-1].startswith("3/"):
                raise Killed
            yield item

    given = {"memory_bytes": ONE_INPUT}
    with pytest.raises(Killed):
        quantize_transformer_(model, recipe(), recorded, tmp_path, track=killer, **given)
    finished = sorted((tmp_path / "rounded").glob("*.safetensors"))
    assert len(finished) == 2
    assert not [m for m in model.modules() if type(m).__name__ == "QuantLinear"]
    written = [file.stat().st_mtime_ns for file in finished]
    again = pipelines.load(source).transformer
    made = quantize_transformer_(again, recipe(), recorded, tmp_path, **given)
    assert [file.stat().st_mtime_ns for file in finished] == written
    assert_same(again, made, whole)


def test_what_another_recipe_left_is_not_used(model, source, recorded, tmp_path, whole):
    quantize_transformer_(model, load_recipe("w8a8"), recorded, tmp_path)
    other = pipelines.load(source).transformer
    assert_same(other, quantize_transformer_(other, recipe(), recorded, tmp_path), whole)


def test_a_damaged_file_is_named_and_the_model_stays(model, source, recorded, tmp_path):
    other = pipelines.load(source).transformer
    quantize_transformer_(other, load_recipe("w8a8-naive"), recorded, tmp_path)
    last = sorted((tmp_path / "rounded").glob("*.safetensors"))[-1]
    last.write_bytes(b"no tensors")
    before = list(model.state_dict())
    with refuses(CalibrationError, str(last), "remove it and call again"):
        quantize_transformer_(model, load_recipe("w8a8-naive"), recorded, tmp_path)
    assert list(model.state_dict()) == before


def test_a_recipe_for_nothing(model, recorded, tmp_path):
    nothing = Recipe(name="nothing", rule=[{"float": True}])
    with refuses(PlanError, "leaves every layer", "nothing"):
        quantize_transformer_(model, nothing, recorded, tmp_path)
