"""Recorded calls: what was passed comes back, prompt by prompt, whole or not at all."""

import json

import pytest
import torch

from checks import refuses
from viditq.calibration import CalibrationInfo, CalibrationSet, move
from viditq.errors import CalibrationError

INFO = CalibrationInfo(
    source="here",
    model="0123",
    prompts=("a red star", "ein größerer Stern ★"),
    num_steps=4,
    steps=(0, 3),
    guidance=4.5,
    seed=7,
)


def arguments() -> dict:
    """Every kind of argument that diffusers' pipelines pass."""
    return {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([999, 999]),
        "encoder_attention_mask": torch.tensor([[True, False]]),
        "half": torch.randn(3).half(),
        "brain": torch.randn(3).bfloat16(),
        "view": torch.randn(4, 3).T,
        "empty": torch.empty(0, 3),
        "added_cond_kwargs": {"resolution": torch.randn(2, 2), "aspect_ratio": None},
        "image_rotary_emb": (torch.randn(3, 2), torch.randn(3, 2)),
        "img_shapes": [[1, 4, 4]],
        "nothing": None,
        "return_dict": False,
        "scale": 1.5,
    }


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and all(map(same, a, b)) and len(a) == len(b)
    return type(a) is type(b) and a == b


@pytest.fixture
def calls():
    return [[(step, arguments()) for step in INFO.steps] for _ in INFO.prompts]


@pytest.fixture
def complete(tmp_path, calls):
    recorded = CalibrationSet.create(tmp_path / "set", INFO)
    for prompt, own in enumerate(calls):
        recorded.write_prompt(prompt, own)
    return recorded


def test_round_trip(complete, calls):
    again = CalibrationSet(complete.folder)
    assert again.info == INFO
    assert len(again) == 4
    read = list(again)
    assert [(c.prompt, c.step) for c in read] == [(0, 0), (0, 3), (1, 0), (1, 3)]
    for call, (_, expected) in zip(read, calls[0] + calls[1], strict=True):
        assert same(dict(call.arguments), expected)


def test_one_call_in_some_is_spread_over_prompts_and_steps(complete):
    every = [(call.prompt, call.step) for call in complete]
    assert len(every) == len(complete) == complete.count()
    some = [(call.prompt, call.step) for call in complete.calls(2)]
    assert len(some) == complete.count(2) == (len(every) + 1) // 2
    assert set(some) < set(every)
    assert {prompt for prompt, _ in some} == {prompt for prompt, _ in every}
    assert {step for _, step in some} == {step for _, step in every}
    assert len(list(complete.calls(100))) == 1


class TestSeveralCallsInAStep:
    @pytest.fixture
    def paired(self, tmp_path):
        """Arguments say where a call belongs."""
        info = INFO.model_copy(update={"calls_per_step": 2})
        recorded = CalibrationSet.create(tmp_path / "paired", info)
        for prompt in range(2):
            own = [(step, {"is": [prompt, step, number]}) for step in (0, 3) for number in (0, 1)]
            recorded.write_prompt(prompt, own)
        return recorded

    def test_all_come_back_in_their_order(self, paired):
        found = [call.arguments["is"] for call in CalibrationSet(paired.folder)]
        assert found == [[p, s, n] for p in (0, 1) for s in (0, 3) for n in (0, 1)]
        assert len(paired) == 8

    def test_some_are_spread_over_prompts_steps_and_calls(self, paired):
        found = [call.arguments["is"] for call in paired.calls(2)]
        assert len(found) == paired.count(2) == 4
        for place, values in enumerate([{0, 1}, {0, 3}, {0, 1}]):
            assert {entry[place] for entry in found} == values
        assert {(step, number) for _, step, number in found} == {(0, 0), (0, 1), (3, 0), (3, 1)}

    def test_a_step_with_fewer(self, paired):
        with refuses(CalibrationError, "Step 3", "1 times", "expected 2"):
            paired.write_prompt(0, [(0, {}), (0, {}), (3, {})])

    def test_more_than_wanted_are_left_out(self, tmp_path, calls):
        recorded = CalibrationSet.create(tmp_path / "more", INFO)
        for prompt, own in enumerate(calls):
            recorded.write_prompt(prompt, [call for call in own for _ in range(2)])
        assert len(list(recorded)) == len(recorded) == 4

    def test_a_set_that_does_not_say_has_one(self, complete):
        index = complete.folder / "calibration.json"
        told = json.loads(index.read_text())
        del told["calls_per_step"]
        index.write_text(json.dumps(told))
        assert len(list(CalibrationSet(complete.folder))) == 4


def test_two_arguments_may_be_one_tensor(tmp_path):
    """safetensors refuses tensors that share memory; pipelines pass such."""
    x = torch.randn(4, 2)
    recorded = CalibrationSet.create(tmp_path / "set", INFO)
    for prompt in range(2):
        recorded.write_prompt(prompt, [(s, {"a": x, "b": x, "c": x[1:]}) for s in INFO.steps])
    first = next(iter(recorded)).arguments
    assert same(dict(first), {"a": x, "b": x, "c": x[1:]})


def test_what_is_recorded_does_not_follow_the_original(tmp_path):
    x = torch.zeros(3)
    recorded = CalibrationSet.create(tmp_path / "set", INFO)
    for prompt in range(2):
        recorded.write_prompt(prompt, [(s, {"x": x}) for s in INFO.steps])
    x += 1
    assert not next(iter(recorded)).arguments["x"].any()


def test_an_incomplete_set_knows_what_is_missing(tmp_path, calls):
    recorded = CalibrationSet.create(tmp_path / "set", INFO)
    assert recorded.missing == [0, 1]
    recorded.write_prompt(1, calls[1])
    assert CalibrationSet.create(tmp_path / "set", INFO).missing == [0]
    with refuses(CalibrationError, "1 of 2", "record again"):
        next(iter(recorded))


def test_a_prompt_that_was_cut_off_does_not_count(tmp_path, calls, monkeypatch):
    import viditq.calibration.recorded as module

    recorded = CalibrationSet.create(tmp_path / "set", INFO)
    original, written = module.save_file, []

    def full(tensors, path, metadata):
        if written:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        written.append(path)
        original(tensors, path, metadata=metadata)

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        recorded.write_prompt(0, calls[0])
    monkeypatch.undo()
    assert recorded.missing == [0, 1]
    recorded.write_prompt(0, calls[0])  # over the remains
    assert recorded.missing == [1]
    recorded.write_prompt(1, calls[1])
    assert len(list(recorded)) == 4


@pytest.mark.parametrize("field", ["model", "prompts", "steps", "num_steps", "guidance", "seed"])
def test_a_folder_with_other_settings(complete, field):
    other = {"model": "0124", "prompts": ("a red star",), "steps": (0, 2)}.get(field, 9)
    with refuses(CalibrationError, str(complete.folder), "other settings"):
        CalibrationSet.create(complete.folder, INFO.model_copy(update={field: other}))


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda data: "{", ()),
        (lambda data: [], ()),
        (lambda data: data | {"sampler": "ddim"}, ("sampler", "unknown field")),
        (lambda data: {k: v for k, v in data.items() if k != "seed"}, ("seed",)),
        (lambda data: data | {"schema_version": 2}, ("schema version 2",)),
        (lambda data: data | {"guidance": "much"}, ("guidance", "'much'")),
    ],
    ids=["cut off", "list", "unknown field", "missing field", "newer", "wrong type"],
)
def test_a_damaged_index(complete, change, facts):
    index = complete.folder / "calibration.json"
    data = change(json.loads(index.read_text("utf-8")))
    index.write_text(data if isinstance(data, str) else json.dumps(data))
    with refuses(CalibrationError, "calibration.json", *facts):
        CalibrationSet(complete.folder)


def test_no_set(tmp_path):
    with refuses(CalibrationError, "calibration.json", "No such file"):
        CalibrationSet(tmp_path)


@pytest.mark.parametrize("damage", ["cut off", "no header", "gone"])
def test_a_damaged_call(complete, damage):
    from safetensors.torch import save_file

    file = complete.folder / "prompt-00001" / "step-0003.safetensors"
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "no header":
        save_file({"x": torch.zeros(1)}, file)
    else:
        file.unlink()
    with refuses(CalibrationError, "step-0003.safetensors"):
        list(complete)


def test_prompts_are_hashed_in_order():
    swapped = INFO.model_copy(update={"prompts": INFO.prompts[::-1]})
    assert len(INFO.prompts_sha256) == 64
    assert swapped.prompts_sha256 != INFO.prompts_sha256


def test_moving_reaches_nested_tensors():
    moved = move(arguments(), "meta")
    assert moved["added_cond_kwargs"]["resolution"].device.type == "meta"
    assert moved["added_cond_kwargs"]["aspect_ratio"] is None
    assert moved["return_dict"] is False
