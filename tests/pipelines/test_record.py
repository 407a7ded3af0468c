"""Recording keeps what the pipeline passed, at the steps asked for, and goes on after a kill."""

from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from checks import refuses
from viditq import pipelines
from viditq.calibration import CalibrationSet, model_fingerprint
from viditq.errors import CalibrationError, InputError
from viditq.pipelines.record import kept_steps, record

PROMPTS = ["a red star", "a small blue square moving left over green", "a circle"]
KINDS = pytest.mark.parametrize("kind", ["image", "video"])


@pytest.fixture(scope="module")
def pipe(floats):
    return cache(lambda kind: pipelines.load(floats[kind]))


@given(num_steps=st.integers(1, 60), kept=st.integers(1, 70))
def test_kept_steps_are_spread_evenly(num_steps, kept):
    steps = kept_steps(num_steps, kept)
    assert len(steps) == len(set(steps)) == min(kept, num_steps)
    assert list(steps) == sorted(steps)
    assert steps[0] >= 0 and steps[-1] < num_steps
    if len(steps) > 1:
        assert (steps[0], steps[-1]) == (0, num_steps - 1)
        gaps = [b - a for a, b in pairwise(steps)]
        assert max(gaps) - min(gaps) <= 1


@KINDS
def test_calls_are_those_of_the_pipeline(pipe, kind, tmp_path):
    """Played back to the transformer, the last call gives what the pipeline got from it."""
    model, outputs, inputs = pipe(kind).transformer, [], []

    def keep(module, args, kwargs, output):
        inputs.append((*args, *kwargs.values())[0].clone())
        outputs.append(output[0].clone())

    handle = model.register_forward_hook(keep, with_kwargs=True)
    recorded = record(pipe(kind), PROMPTS[:2], tmp_path / "r", steps=4, kept=3)
    handle.remove()
    assert recorded.info.steps == (0, 2, 3)
    calls = list(recorded)
    expected = [(p, s, p * 4 + s) for p in range(2) for s in (0, 2, 3)]
    for call, (prompt, step, index) in zip(calls, expected, strict=True):
        assert (call.prompt, call.step) == (prompt, step)
        assert torch.equal(call.arguments["hidden_states"], inputs[index])
        with torch.inference_mode():
            again = model(**{**call.arguments, "return_dict": False})[0]
        assert torch.equal(again, outputs[index])


@KINDS
def test_the_noise_is_that_of_the_seed(pipe, kind, tmp_path):
    recorded = record(pipe(kind), PROMPTS, tmp_path / "r", steps=1, kept=1, seed=40)
    alone = record(pipe(kind), PROMPTS[1:2], tmp_path / "s", steps=1, kept=1, seed=41)
    second, only = list(recorded)[1], next(iter(alone))
    assert torch.equal(second.arguments["hidden_states"], only.arguments["hidden_states"])


def test_without_guidance_there_is_one_branch(pipe, tmp_path):
    both = record(pipe("image"), PROMPTS[:1], tmp_path / "2", steps=1, kept=1, guidance=4.5)
    one = record(pipe("image"), PROMPTS[:1], tmp_path / "1", steps=1, kept=1, guidance=1.0)
    assert len(next(iter(both)).arguments["hidden_states"]) == 2
    assert len(next(iter(one)).arguments["hidden_states"]) == 1


def test_what_was_recorded_is_written_down(pipe, tmp_path):
    recorded = record(
        pipe("image"), PROMPTS, tmp_path / "r", source="here", seed=5, steps=2, kept=9, guidance=3.0
    )
    info = CalibrationSet(tmp_path / "r").info
    assert info == recorded.info
    assert info.model == model_fingerprint(pipe("image").transformer)
    assert (info.source, info.prompts, info.seed) == ("here", tuple(PROMPTS), 5)
    assert (info.num_steps, info.steps, info.guidance) == (2, (0, 1), 3.0)


class Killed(BaseException):
    """As Ctrl-C and SIGTERM: nothing may catch it."""


@KINDS
# Before the second prompt, and in the middle of its trajectory.
@pytest.mark.parametrize("when", ["between", "within"])
def test_interrupted_and_resumed_it_is_the_same(pipe, kind, when, tmp_path):
    settings = {"steps": 3, "kept": 2, "seed": 9}
    whole = record(pipe(kind), PROMPTS, tmp_path / "whole", **settings)
    done = 0

    def between(items, description, total=None):
        for number, item in enumerate(items):
            if number == 1:
                raise Killed
            yield item

    def within(module, arguments):
        nonlocal done
        done += 1
        if done == 3 + 2:
            raise Killed

    if when == "between":
        with pytest.raises(Killed):
            record(pipe(kind), PROMPTS, tmp_path / "r", **settings, track=between)
    else:
        handle = pipe(kind).transformer.register_forward_pre_hook(within)
        with pytest.raises(Killed):
            record(pipe(kind), PROMPTS, tmp_path / "r", **settings)
        handle.remove()
    assert not pipe(kind).transformer._forward_pre_hooks
    assert CalibrationSet(tmp_path / "r").missing == [1, 2]
    first = tmp_path / "r" / "prompt-00000"
    written = first.stat().st_mtime_ns
    again = record(pipe(kind), PROMPTS, tmp_path / "r", **settings)
    assert first.stat().st_mtime_ns == written
    for a, b in zip(again, whole, strict=True):
        assert (a.prompt, a.step) == (b.prompt, b.step)
        for name, value in b.arguments.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(a.arguments[name], value)
            else:
                assert a.arguments[name] == value


def test_a_finished_set_is_not_recorded_again(pipe, tmp_path):
    record(pipe("image"), PROMPTS, tmp_path / "r", steps=1, kept=1)
    seen = []

    def track(items, description, total=None):
        seen.append(total)
        yield from items

    record(pipe("image"), PROMPTS, tmp_path / "r", steps=1, kept=1, track=track)
    assert seen == [0]


def test_a_folder_of_other_settings_or_another_model(pipe, tmp_path):
    record(pipe("image"), PROMPTS, tmp_path / "r", steps=1, kept=1)
    with refuses(CalibrationError, str(tmp_path / "r"), "other settings"):
        record(pipe("image"), PROMPTS, tmp_path / "r", steps=2, kept=1)
    with refuses(CalibrationError, str(tmp_path / "r"), "other settings"):
        record(pipe("video"), PROMPTS, tmp_path / "r", steps=1, kept=1)


@pytest.mark.parametrize("arguments", [{"prompts": []}, {"steps": 0}, {"kept": 0}])
def test_nothing_to_record(pipe, tmp_path, arguments):
    given = {"prompts": PROMPTS, "steps": 2, "kept": 2} | arguments
    with refuses(InputError, "at least one"):
        record(pipe("image"), folder=tmp_path / "r", **given)
    assert not (tmp_path / "r").exists()


def test_a_scheduler_that_runs_fewer_steps(floats, tmp_path):
    pipe = pipelines.load(floats["image"])
    original = pipe.scheduler.set_timesteps

    def shorter(num, *args, **kwargs):
        original(num, *args, **kwargs)
        pipe.scheduler.timesteps = pipe.scheduler.timesteps[:2]

    pipe.scheduler.set_timesteps = shorter
    with refuses(CalibrationError, "2 of 4"):
        record(pipe, PROMPTS[:1], tmp_path / "r", steps=4, kept=4)
    assert CalibrationSet(tmp_path / "r").missing == [0]
