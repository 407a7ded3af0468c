"""Progress and results on their way to a person."""

import json

import pytest

from viditq.cli.terminal import session, write_json


def test_progress_in_a_log_is_a_line_when_done(capsys):
    with session() as track:
        assert list(track(range(3), "count", 3)) == [0, 1, 2]
        assert list(track(iter("ab"), "unknown length")) == ["a", "b"]
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith("count: 3 in ")
    assert second.startswith("unknown length: 2 in ")


def test_progress_may_be_left_early(capsys):
    with session() as track:
        for item in track(range(10), "count", 10):
            if item == 4:
                break
    assert "count: 4 in" in capsys.readouterr().err


def test_json_is_whole_or_absent(tmp_path):
    write_json(None, {"a": 1})
    write_json(tmp_path / "deep" / "a.json", {"name": "é"})
    assert json.loads((tmp_path / "deep" / "a.json").read_text("utf-8")) == {"name": "é"}
    with pytest.raises(TypeError):
        write_json(tmp_path / "b.json", object())
    assert not (tmp_path / "b.json").exists()
