"""Statistics on disk: whole or not there, of one model and set, read when asked for."""

import json

import pytest
import torch

from checks import refuses
from viditq.errors import CalibrationError
from viditq.stats import CalibrationStats, LayerStats, stats_of

FILES = {"q": "q.safetensors", "k": "q.safetensors", "up": "up.safetensors"}


def layer(k: int = 5) -> LayerStats:
    rows = torch.randn(7, k)
    return LayerStats(
        step_amax=torch.rand(2, k),
        mean=rows.mean(0),
        second_moment=rows.T @ rows / 7,
        rows=rows,
        row_steps=torch.tensor([0, 0, 0, 0, 9, 9, 9]),
        count=torch.tensor([700]),
    )


@pytest.fixture
def stats(tmp_path) -> CalibrationStats:
    return CalibrationStats.create(tmp_path / "s", observed="abc", steps=[0, 9], layers=FILES)


def damage(stats: CalibrationStats, change) -> None:
    index = stats.folder / "stats.json"
    data = change(json.loads(index.read_text()))
    index.write_text(data if isinstance(data, str) else json.dumps(data))


def test_round_trip(stats):
    up, q = layer(), layer(3)
    stats.write("up.safetensors", up)
    stats.write("q.safetensors", q)
    again = CalibrationStats(stats.folder)
    assert again.steps == [0, 9]
    assert list(again) == ["q", "k", "up"]
    assert len(again) == 3
    for name, expected in {"q": q, "k": q, "up": up}.items():
        for field, tensor in vars(again[name]).items():
            assert torch.equal(tensor, getattr(expected, field))
            assert tensor.dtype == getattr(expected, field).dtype


def test_moves():
    moved = layer().to("meta")
    assert {t.device.type for t in vars(moved).values()} == {"meta"}


def test_what_is_begun_goes_on(stats):
    assert stats.missing == {"q.safetensors", "up.safetensors"}
    stats.write("up.safetensors", layer())
    again = CalibrationStats.create(stats.folder, observed="abc", steps=[0, 9], layers=FILES)
    assert again.missing == {"q.safetensors"}
    assert "up" in again
    with refuses(CalibrationError, "q.safetensors", "1 entries"):
        again["k"]


def test_nothing_half_written_counts(stats, monkeypatch):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("viditq.stats.save_file", full)
    with pytest.raises(OSError, match="No space"):
        stats.write("up.safetensors", layer())
    assert stats.missing == {"q.safetensors", "up.safetensors"}


def test_of_another_calibration(stats):
    with refuses(CalibrationError, str(stats.folder), "another model or calibration set"):
        CalibrationStats.create(stats.folder, observed="abd", steps=[0, 9], layers=FILES)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: "{",
        lambda data: [],
        lambda data: None,
        lambda data: {**data, "layers": 3},
        lambda data: {k: v for k, v in data.items() if k != "observed"},
        lambda data: {k: v for k, v in data.items() if k != "schema_version"},
    ],
    ids=["cut off", "list", "null", "no layers", "field missing", "no version"],
)
def test_a_damaged_index(stats, change):
    damage(stats, change)
    with refuses(CalibrationError, "stats.json"):
        CalibrationStats(stats.folder)


def test_a_newer_schema(stats):
    damage(stats, lambda data: {**data, "schema_version": 2})
    with refuses(CalibrationError, "stats.json", "schema version 2", "1"):
        CalibrationStats(stats.folder)


def test_no_directory(tmp_path):
    with refuses(CalibrationError, str(tmp_path / "none" / "stats.json")):
        CalibrationStats(tmp_path / "none")


def test_a_file_that_is_cut_off(stats):
    stats.write("up.safetensors", layer())
    file = stats.folder / "up.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with refuses(CalibrationError, str(file)):
        stats["up"]


@pytest.mark.parametrize("field", ["mean", "extra"])
def test_a_file_with_other_tensors(stats, field):
    from safetensors.torch import save_file

    tensors = vars(layer()) | {"extra": torch.zeros(1)}
    del tensors[field if field == "mean" else "count"]
    save_file(tensors, stats.folder / "up.safetensors")
    with refuses(CalibrationError, "up.safetensors"):
        stats["up"]


def test_statistics_that_do_not_fit_a_layer():
    fitting = {"a": layer(5)}
    assert stats_of(fitting, "a", 5) is fitting["a"]
    with refuses(CalibrationError, "b"):
        stats_of(fitting, "b", 5)
    with refuses(CalibrationError, "a", "5 channels", "36"):
        stats_of(fitting, "a", 36)
