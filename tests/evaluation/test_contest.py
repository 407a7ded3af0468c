"""Contests: numbers that follow from the samples, and nothing made twice however it is stopped."""

import importlib.util
import json
import shutil

import pytest

from checks import refuses
from viditq import checkpoint, pipelines
from viditq.calibration import CalibrationSet
from viditq.errors import InputError, PipelineError, PlanError
from viditq.evaluation import (
    Contest,
    Lineup,
    contest,
    ladder_lineup,
    load_comparison,
    run_contest,
    sampling,
    shootout_lineup,
)

PROMPTS = ["a red star", "a blue circle"]
SETTINGS = {
    **{"num": 3, "seed": 5, "steps": 2, "batch_size": 2},
    "calibration_prompts": ["a red star"],
}
SHOOTOUT = shootout_lineup("w8a8", "naive,dynamic")
NAMES = ("w8a8", "w8a8-naive", "w8a8-dynamic")


class Calls(list):
    """What was made, in order; ``stop_at`` interrupts the call of that number."""

    stop_at = None

    def add(self, what):
        if self.stop_at == len(self):
            raise KeyboardInterrupt
        self.append(what)


@pytest.fixture
def calls(monkeypatch):
    """``record``, ``quantize NAME``, and the seeds of every batch of samples."""
    calls = Calls()

    def spy(module, name, say):
        real = getattr(module, name)

        def spied(*args, **kwargs):
            calls.add(say(*args, **kwargs))
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, spied)

    spy(pipelines, "quantize", lambda *_, preset, **__: f"quantize {preset.name}")
    spy(sampling.pipelines, "generate", lambda pipe, prompts, seeds, **_: seeds)
    write = CalibrationSet.write_prompt
    monkeypatch.setattr(
        CalibrationSet,
        "write_prompt",
        lambda *args: (calls.add("record"), write(*args)),
    )
    return calls


@pytest.fixture
def run(pixart, tmp_path, judge):
    def run(lineup=SHOOTOUT, **changes):
        settings = {"out": tmp_path / "c", "judge": judge, **SETTINGS, **changes}
        return run_contest(pixart / "float", lineup, PROMPTS, **settings)

    return run


@pytest.fixture(scope="module")
def finished(pixart, tmp_path_factory, judge):
    """A shootout from beginning to end, and what it told; never write into it."""
    out, told = tmp_path_factory.mktemp("contest") / "c", []
    settings = {"out": out, "judge": judge, **SETTINGS}
    made = run_contest(pixart / "float", SHOOTOUT, PROMPTS, **settings, tell=told.append)
    return out, made, told


def test_rows_follow_from_the_samples(finished):
    out, made, told = finished
    results = {result.name: result for result in load_comparison(out).results}
    assert tuple(results) == NAMES
    assert [row.psnr_db for row in made.rows] == sorted(
        (result.psnr_db for result in results.values()), reverse=True
    )
    ours = results["w8a8"].samples
    for row in made.rows:
        theirs = results[row.name].samples
        assert row.psnr_db_by_seed == tuple(sample.psnr_db for sample in theirs)
        if row.name == "w8a8":
            assert row.gain is None
            continue
        differences = [a.psnr_db - b.psnr_db for a, b in zip(theirs, ours, strict=True)]
        assert row.gain.over == "w8a8"
        assert row.gain.psnr_db == pytest.approx(sum(differences) / 3)
        low, high = row.gain.psnr_db_ci
        assert min(differences) <= low <= high <= max(differences)
        assert row.gain.outcome == ("won" if low > 0 else "lost" if high < 0 else "within")
    assert made.float_bf16.gain.over == "w8a8"
    assert (made.kind, made.bits, made.provenance.seed) == ("shootout", "w8a8", 5)
    assert [line.partition(":")[0] for line in told] == list(NAMES)
    assert f"{results['w8a8'].psnr_db:.1f} dB" in told[0]
    assert "(1 of 3)" in told[0]


def test_the_directory(finished):
    out, made, _ = finished
    assert {path.name for path in out.iterdir()} == {
        *("run.json", "calibration", "quantized", "comparison", "contest.json")
    }
    assert Contest.load(out) == made == Contest.load(out / "contest.json")
    assert json.loads((out / "contest.json").read_text()) == made.to_json()
    assert {path.name for path in (out / "quantized").iterdir()} == set(NAMES)
    calibrations = set()
    for name in NAMES:
        summary = checkpoint.inspect(out / "quantized" / name)
        assert summary.recipe == name
        [row] = [row for row in made.rows if row.name == name]
        assert (row.weight_bits, row.size_bytes) == (summary.weight_bits, summary.size_bytes)
        calibrations.add(summary.provenance.prompts_sha256)
    assert calibrations == {CalibrationSet(out / "calibration" / "recorded").info.prompts_sha256}


def test_a_ladder_keeps_its_order(run):
    ladder = ladder_lineup("paper", "w8a8")
    steps = ladder.recipes[:3]
    made = run(Lineup("ladder", "w8a8", steps), num=2)
    assert [row.name for row in made.rows] == [recipe.name for recipe in steps]
    first, second, third = made.rows
    assert (first.gain, made.float_bf16.gain) == (None, None)
    assert (second.gain.over, third.gain.over) == (first.name, second.name)
    assert third.gain.psnr_db == pytest.approx(third.psnr_db - second.psnr_db)


def test_what_is_stopped_anywhere_goes_on_and_makes_nothing_twice(
    run, calls, tmp_path, monkeypatch
):
    lineup = shootout_lineup("w8a8", "naive")
    for stop_at in (1, 4, 5, 7, 8):
        calls.stop_at = stop_at
        with pytest.raises(KeyboardInterrupt):
            run(lineup)
        assert len(calls) == stop_at
    calls.stop_at = None

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Contest, "save", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(lineup)
    assert not (tmp_path / "c" / "contest.json").exists()
    made = run(lineup)
    assert list(calls) == [
        *([5, 6], [7]),  # float
        *([5, 6], [7]),  # in bf16
        "record",
        *("quantize w8a8", [5, 6], [7]),
        *("quantize w8a8-naive", [5, 6], [7]),
    ]
    assert {row.name for row in made.rows} == {"w8a8", "w8a8-naive"}


@pytest.fixture
def copied(finished, tmp_path):
    """The finished shootout where ``run`` works; times stay, as samples are known by them."""
    return shutil.copytree(finished[0], tmp_path / "c")


def test_finished_and_asked_again(run, calls, copied, finished):
    assert run() == finished[1]
    with refuses(InputError, "--overwrite"):
        run(num=4)
    with refuses(InputError, "--overwrite"):
        run(shootout_lineup("w8a8", "dynamic"))
    assert calls == []
    assert Contest.load(copied) == finished[1]


def test_overwrite_uses_again_what_fits(run, calls, copied):
    more = run(shootout_lineup("w8a8", "dynamic,smoothquant"), num=4, overwrite=True)
    # Only batches with another sample in them, and the recipe that was not there.
    again = [[7, 8]] * 4
    assert list(calls) == [*again, "quantize w8a8-smoothquant", [5, 6], [7, 8]]
    assert {row.name for row in more.rows} == {"w8a8", "w8a8-dynamic", "w8a8-smoothquant"}
    assert (copied / "quantized" / "w8a8-naive").is_dir()


def test_what_a_killed_process_left_is_removed(run, calls, copied, finished):
    (copied / "contest.json").unlink()
    half = copied / "quantized" / ".w8a8-dynamic.0a1b2c3d.partial"
    half.mkdir()
    assert run() == finished[1].model_copy(update={"provenance": run().provenance})
    assert calls == []
    assert not half.exists()


def test_another_recipe_of_the_same_name(run, calls, copied):
    ours, naive, dynamic = SHOOTOUT.recipes
    other = dynamic.model_copy(update={"name": naive.name})
    (copied / "contest.json").unlink()  # as if it had been stopped
    with refuses(InputError, "w8a8-naive", "another recipe", "--overwrite"):
        run(Lineup("shootout", "w8a8", (ours, other)))
    assert calls == []
    run(Lineup("shootout", "w8a8", (ours, other)), overwrite=True)
    assert list(calls) == ["quantize w8a8-naive", [5, 6], [7]]
    assert checkpoint.inspect(copied / "quantized" / "w8a8-naive").weight_bits > 8


def test_another_calibration_begins_anew(run, calls, copied):
    (copied / "contest.json").unlink()
    lineup = shootout_lineup("w8a8", "naive")
    with refuses(InputError, "another calibration", "--overwrite"):
        run(lineup, calibration_prompts=["a blue circle"])
    assert calls == []
    run(lineup, calibration_prompts=["a blue circle"], overwrite=True)
    made = [call for call in calls if isinstance(call, str)]
    assert made == ["record", "quantize w8a8", "quantize w8a8-naive"]
    assert {path.name for path in (copied / "quantized").iterdir()} == {"w8a8", "w8a8-naive"}


def test_gradients_are_part_of_the_shared_calibration(run, tmp_path, monkeypatch):
    """The last steps of the ladder need them; no job may find them half-written."""
    before = []
    quantize = pipelines.quantize

    def spied(*args, **kwargs):
        before.append((tmp_path / "c" / "calibration" / "gradients").is_dir())
        return quantize(*args, **kwargs)

    monkeypatch.setattr(contest.pipelines, "quantize", spied)
    dynamic, *_, last = ladder_lineup("paper", "w8a8").recipes[1:]
    made = run(Lineup("ladder", "w8a8", (dynamic, last)), num=2)
    assert last.default.rounding == "two_sided"
    assert before == [True, True]
    assert [row.name for row in made.rows] == [dynamic.name, last.name]


def test_mistakes_are_found_before_anything_is_made(run, calls, pixart, tmp_path, judge):
    with refuses(PipelineError, "nowhere"):
        run_contest("nowhere", SHOOTOUT, PROMPTS, out=tmp_path / "c")
    with refuses(InputError, "is quantized"):
        run_contest(pixart / "w8a8-naive", SHOOTOUT, PROMPTS, out=tmp_path / "c")
    with refuses(InputError, "prompts of their own"):
        run_contest(pixart / "float", SHOOTOUT, out=tmp_path / "c")
    with refuses(InputError, "num"):
        run(num=0)
    with refuses(InputError, "tpu"):
        run(device="tpu")
    named = SHOOTOUT.recipes[0].model_copy(update={"name": "../mine"})
    with refuses(PlanError, "../mine"):
        run(Lineup("ladder", "w8a8", (named,)))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with refuses(InputError, "other files"):
        run(out=tmp_path / "photos", overwrite=True)
    assert calls == []
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_an_error_names_its_recipe(run, monkeypatch):
    def broken(*_, **__):
        raise PlanError("Too few bits.")

    monkeypatch.setattr(contest.pipelines, "quantize", broken)
    with refuses(PlanError, "w8a8: Too few bits."):
        run()


def test_a_damaged_record_is_named(run, copied):
    (copied / "run.json").write_text("{}")
    with refuses(InputError, "run.json", "damaged"):
        run()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_two_processes_make_the_same_samples(run, finished, tmp_path):
    out, made, _ = finished
    told = []
    side_by_side = run(workers=2, tell=told.append)
    assert side_by_side.rows == made.rows
    assert sorted(line.partition(":")[0] for line in told) == sorted(NAMES)
    samples = sorted((out / "comparison" / "samples").rglob("*.png"))
    assert len(samples) == 5 * 3
    for file in samples:
        other = tmp_path / "c" / file.relative_to(out)
        assert other.read_bytes() == file.read_bytes()
