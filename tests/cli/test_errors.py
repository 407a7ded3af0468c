"""What a user can get wrong ends with one sentence, exit code 2, and nothing half-written."""

import errno
import json
import os
import re
import shutil

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import tiny
from viditq import pipelines
from viditq.errors import InputError


@pytest.fixture
def refused(viditq, tmp_path):
    """Run a command that must fail; returns its one sentence."""

    def run(*arguments, code=2, notes=""):
        before = {path.name for path in tmp_path.iterdir()}
        result = viditq(*arguments)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        assert result.stdout == ""
        *progress, line = result.stderr.strip().splitlines()
        progress = [shown for shown in progress if shown != notes]
        assert all(re.fullmatch(r"[a-z ]+: \d+ in [\d.]+ s", shown) for shown in progress)
        assert line.startswith("viditq: ")
        assert {path.name for path in tmp_path.iterdir()} == before
        return line

    return run


def test_no_such_pipeline(refused, tmp_path):
    line = refused("quantize", "nowhere", "--out", tmp_path / "q")
    assert "nowhere" in line
    assert "shapes-image" in line


@pytest.mark.parametrize("content", ["", "# nothing\n"])
def test_empty_prompt_file(refused, float_pipeline, tmp_path, content):
    file = tmp_path / "empty.txt"
    file.write_text(content)
    for command in ("quantize", "analyze"):
        assert "empty.txt" in refused(
            command, float_pipeline, "--prompts", file, "--out", tmp_path / "q"
        )


def test_missing_prompt_file(refused, float_pipeline, tmp_path):
    assert "No such file" in refused(
        "quantize", float_pipeline, "--prompts", tmp_path / "no.txt", "--out", tmp_path / "q"
    )


def test_unknown_preset(refused, float_pipeline, tmp_path):
    assert "w3a3" in refused(
        "quantize", float_pipeline, "--preset", "w3a3", "--out", tmp_path / "q"
    )


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (("shootout", "--bits", "w3a3"), "w3a3"),
        (("shootout", "--methods", "naive,frobnicate"), "frobnicate"),
        (("shootout", "--bits", "w4a8", "--methods", "fp8"), "w4a8-fp8"),
        (("shootout",), "prompts of their own"),
        (("ablate", "--ladder", "nowhere"), "nowhere"),
        (("ablate", "--bits", "four"), "four"),
        (("ablate", "--device", "tpu"), "tpu"),
    ],
)
def test_contests_that_cannot_be(refused, float_pipeline, tmp_path, arguments, fact):
    command, *options = arguments
    notes = "fp8 has fp8 weights and fp8 activations; there is no w4a8-fp8."
    line = refused(command, float_pipeline, *options, "--out", tmp_path / "c", notes=notes)
    assert fact in line


def test_processes_without_ray(refused, float_pipeline, prompt_file, tmp_path, monkeypatch):
    from viditq.evaluation import workers

    monkeypatch.setattr(workers, "has_ray", lambda: False)
    line = refused(
        *("shootout", float_pipeline, "--methods", "naive", "--prompts", prompt_file),
        *("--workers", 2, "--out", tmp_path / "c"),
    )
    assert "viditq[ray]" in line


def test_a_contest_in_a_folder_of_photographs(refused, float_pipeline, prompt_file, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    line = refused(
        *("ablate", float_pipeline, "--prompts", prompt_file),
        *("--out", tmp_path / "photos", "--overwrite"),
    )
    assert "other files" in line


@pytest.mark.parametrize(
    "index",
    [
        {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]},
        {"_class_name": "NoPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]},
    ],
)
def test_other_kinds_of_model(refused, tmp_path, index):
    source = tmp_path / "other"
    source.mkdir()
    (source / "model_index.json").write_text(json.dumps(index))
    for command in ("quantize", "analyze"):
        line = refused(command, source, "--out", tmp_path / "q")
        assert "PixArt" in line  # what is supported
        assert index["_class_name"] in line or index["transformer"][1] in line


def test_weights_that_are_not_finite(refused, tmp_path, prompt_file):
    source = tiny.saved(tiny.pixart(), tmp_path / "broken")
    [file] = (source / "transformer").glob("*.safetensors")
    weights = load_file(file)
    weights["transformer_blocks.0.attn1.to_q.weight"][0, 0] = float("nan")
    save_file(weights, file, {"format": "pt"})
    line = refused("quantize", source, "--prompts", prompt_file, "--out", tmp_path / "q")
    assert "transformer_blocks.0.attn1.to_q" in line
    assert "NaN" in line


def test_out_that_holds_something(refused, float_pipeline, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    for command in ("quantize", "analyze"):
        line = refused(command, float_pipeline, "--out", tmp_path / "photos", "--overwrite")
        assert "other files" in line
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"


def test_inspect_of_a_float_pipeline(refused, float_pipeline):
    assert "quantize" in refused("inspect", float_pipeline)


def test_inspect_of_a_damaged_file(refused, tmp_path, float_pipeline):
    shutil.copytree(float_pipeline, tmp_path / "q")
    (tmp_path / "q" / "transformer" / "config.json").write_text("{")
    assert "config.json" in refused("inspect", tmp_path / "q")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk(refused, float_pipeline, tmp_path, monkeypatch, error):
    def full(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(pipelines, "quantize", full)
    line = refused("quantize", float_pipeline, "--out", tmp_path / "q")
    assert "disk is full" in line


def test_disk_that_fills_up_while_writing(refused, float_pipeline, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    line = refused(
        "generate", float_pipeline, "--prompt", "a", "--steps", 1, "--out", tmp_path / "a.png"
    )
    assert "disk is full" in line


def test_other_errors_of_the_system(refused, float_pipeline, tmp_path, monkeypatch):
    def denied(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/root/q")

    monkeypatch.setattr(pipelines, "quantize", denied)
    line = refused("quantize", float_pipeline, "--out", tmp_path / "q")
    assert line == "viditq: Permission denied (/root/q)."


def test_interrupt(refused, float_pipeline, tmp_path, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipelines, "quantize", interrupted)
    line = refused("quantize", float_pipeline, "--out", tmp_path / "q", code=130)
    assert line.startswith("viditq: Interrupted.")


def test_a_defect_keeps_its_traceback(viditq, float_pipeline, tmp_path, monkeypatch):
    def broken(*_args, **_kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr(pipelines, "quantize", broken)
    result = viditq("quantize", float_pipeline, "--out", tmp_path / "q")
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_message_of_several_lines_becomes_one(refused, float_pipeline, tmp_path, monkeypatch):
    def wordy(*_args, **_kwargs):
        raise InputError("first\n  second.")

    monkeypatch.setattr(pipelines, "quantize", wordy)
    assert refused("quantize", float_pipeline, "--out", tmp_path / "q") == "viditq: first second."


@pytest.mark.parametrize(
    "arguments",
    [
        ("quantize", "shapes-image"),
        ("generate", "shapes-image", "--prompt", "a", "--out", "a.png", "--steps", "0"),
        ("compare", "shapes-image", "--out", "c"),
        ("frobnicate",),
    ],
)
def test_usage(viditq, arguments):
    result = viditq(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
