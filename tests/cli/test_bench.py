"""``viditq bench`` and ``viditq doctor`` from a shell, at sizes that a CPU computes at once."""

import json

import pytest

from viditq.bench import models, ops, timing
from viditq.bench.models import Fill, ModelCase, Noise
from viditq.bench.products import Product
from viditq.bench.row_ops import Rows

CASE = ModelCase(
    name="small",
    title="CogVideoX, small",
    transformer="CogVideoXTransformer3DModel",
    config={
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "text_embed_dim": 16,
        "time_embed_dim": 16,
        "sample_width": 8,
        "sample_height": 8,
        "sample_frames": 5,
        "max_text_seq_length": 6,
    },
    inputs={
        "hidden_states": Noise((1, 2, 4, 8, 8)),
        "encoder_hidden_states": Noise((1, 6, 16)),
        "timestep": Fill(500, (1,)),
    },
    blocks={"transformer_blocks": "num_layers"},
)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(timing, "MOST", 3)
    monkeypatch.setattr(timing, "WARM_S", 0.0)
    monkeypatch.setattr(timing, "COPY_BYTES", 2**20)
    monkeypatch.setattr(models, "MODELS", {"small": CASE})
    monkeypatch.setattr(ops, "QUICK_PRODUCTS", (Product("small", 34, 48, 64),))
    monkeypatch.setattr(ops, "QUICK_ROWS", (Rows("small", 34, 64, 128),))


def test_ops(viditq, tmp_path):
    file = tmp_path / "ops.json"
    result = viditq("bench", "ops", "--quick", "--device", "cpu", "--json", file)
    assert result.exit_code == 0, result.output
    assert "int4_linear" in result.stdout
    assert "compared on a GPU only" in result.stdout
    told = json.loads(file.read_text("utf-8"))
    assert told["kind"] == "ops"
    assert told["origin"]["command"].startswith("viditq")
    assert {"torch", "triton"} <= set(told["origin"]["versions"])


@pytest.mark.parametrize("kind", ["blocks", "denoisers"])
def test_models(viditq, tmp_path, kind):
    file = tmp_path / "models.json"
    result = viditq(
        *("bench", kind, "--device", "cpu", "--budget", 0.1, "--json", file),
        *("--model", "small", "--variant", "bf16", "--variant", "w8a8"),
    )
    assert result.exit_code == 0, result.output
    assert "CogVideoX" in result.stdout or "small" in result.stdout
    told = json.loads(file.read_text("utf-8"))
    assert [row["op"] for row in told["rows"]] == ["bf16", "w8a8"]
    assert told["rows"][0]["timing"]["median_ms"] > 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("blocks", "--device", "cpu", "--model", "sdxl"), "small"),
        (("blocks", "--device", "cpu", "--variant", "w2a2"), "w8a8-fused"),
        (("ops", "--device", "tpu"), "cuda"),
    ],
)
def test_mistakes(viditq, arguments, told):
    result = viditq("bench", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("viditq: ")
    assert told in result.stderr


def test_an_interrupted_run_says_where_its_rows_are(viditq, tmp_path, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(ops, "row_op_rows", interrupted)
    file = tmp_path / "ops.json"
    result = viditq("bench", "ops", "--quick", "--device", "cpu", "--json", file)
    assert result.exit_code == 130
    assert "--json" in result.stderr
    assert len(json.loads(file.read_text("utf-8"))["rows"]) == 7  # of one product


def test_doctor(viditq, float_pipeline, tmp_path):
    file = tmp_path / "doctor.json"
    result = viditq("doctor", float_pipeline, "--device", "cpu", "--json", file)
    assert result.exit_code == 0, result.output
    assert "ffn.down" in result.stdout
    assert "There is no GPU to measure" in result.stdout
    assert json.loads(file.read_text("utf-8"))["transformer"] == "PixArtTransformer2DModel"


def test_doctor_of_nothing(viditq, tmp_path):
    result = viditq("doctor", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert "nowhere" in result.stderr


@pytest.mark.parametrize("command", [("ops",), ("blocks",), ("denoisers",)])
def test_help(viditq, command):
    result = viditq("bench", *command, "--help")
    assert result.exit_code == 0
    assert "viditq bench" in result.stdout
    assert "--json" in result.stdout


def test_no_arguments_shows_help(viditq):
    assert "denoisers" in viditq("bench").output
