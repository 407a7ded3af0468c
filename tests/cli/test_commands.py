"""Each command does its work from a shell, and says it in JSON as well."""

import json

import pytest
import torch

import tiny
import upstream


@pytest.fixture(scope="module")
def quantized(float_pipeline, prompt_file, tmp_path_factory):
    """``w8a8-naive`` made by the command itself, and its JSON."""
    from typer.testing import CliRunner

    from viditq.cli import app

    folder = tmp_path_factory.mktemp("quantized")
    arguments = ["quantize", float_pipeline, "--preset", "w8a8-naive", "--prompts", prompt_file]
    arguments += ["--out", folder / "w8a8-naive", "--json", folder / "quantize.json"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return folder


def test_quantize(quantized):
    told = json.loads((quantized / "quantize.json").read_text())
    assert told["out"].endswith("w8a8-naive")
    assert 8 < told["weight_bits"] < 12
    assert told["provenance"]["num_prompts"] == 2
    assert "layers" not in told
    assert sorted(path.name for path in quantized.iterdir()) == ["quantize.json", "w8a8-naive"]


def test_inspect(viditq, quantized, tmp_path):
    result = viditq("inspect", quantized / "w8a8-naive", "--json", tmp_path / "inspect.json")
    assert result.exit_code == 0
    assert "ffn.down" in result.stdout
    assert "PixArtTransformer2DModel, adapter pixart, recipe w8a8-naive" in result.stdout
    told = json.loads((tmp_path / "inspect.json").read_text())
    assert len(told["layers"]) == told["num_layers"] == 20


def test_generate(viditq, quantized, tmp_path):
    def make(name):
        result = viditq(
            *("generate", quantized / "w8a8-naive", "--prompt", "a red star", "--seed", 3),
            *("--steps", 2, "--out", tmp_path / name, "--json", tmp_path / "made.json"),
        )
        assert result.exit_code == 0, result.output
        assert "seed 3" in result.stdout
        return (tmp_path / name).read_bytes()

    first = make("a.png")
    assert first.startswith(b"\x89PNG")
    assert make("b.png") == first
    assert json.loads((tmp_path / "made.json").read_text())["shape"] == [16, 16, 3]


def test_generate_video(viditq, tmp_path):
    source = tiny.saved(tiny.latte(), tmp_path / "latte")
    arguments = ("generate", source, "--prompt", "a star", "--steps", 2, "--out")
    assert "2 frames of 16×16 pixels" in viditq(*arguments, tmp_path / "a.mp4").stdout
    assert b"ftyp" in (tmp_path / "a.mp4").read_bytes()[:16]
    result = viditq(*arguments, tmp_path / "a.png")
    assert result.exit_code == 2
    assert "name a .mp4 file" in result.stderr


def test_compare(viditq, float_pipeline, quantized, prompt_file, tmp_path):
    result = viditq(
        *("compare", float_pipeline, quantized / "w8a8-naive", "--prompts", prompt_file),
        *("--num", 2, "--steps", 2, "--out", tmp_path / "c", "--json", tmp_path / "c.json"),
    )
    assert result.exit_code == 0, result.output
    assert "w8a8-naive" in result.stdout
    told = json.loads((tmp_path / "c.json").read_text())
    assert told == json.loads((tmp_path / "c" / "comparison.json").read_text())
    [one] = told["results"]
    assert one["name"] == "w8a8-naive"
    assert len(one["samples"]) == 2
    # What follows is what was typed: here, the arguments of the test runner.
    assert told["provenance"]["command"].startswith("viditq")
    assert {path.name for path in (tmp_path / "c").iterdir()} == {
        *("comparison.json", "layers", "report.html", "samples", "sheet.png")
    }


def run_contest(viditq, tmp_path, *arguments):
    """Run the command twice: the second finds it done. Returns what was told."""
    settings = ("--num", 2, "--steps", 2, "--out", tmp_path / "c", "--json", tmp_path / "c.json")
    result = viditq(*arguments, *settings)
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "c.json").read_text())
    assert told == json.loads((tmp_path / "c" / "contest.json").read_text())
    for row in told["rows"]:
        assert len(row["psnr_db_by_seed"]) == 2
        assert f"{row['name']}: {row['psnr_db']:.1f} dB to float" in result.stderr
    (tmp_path / "c" / "report.html").unlink()
    again = viditq(*arguments, *settings)
    assert again.exit_code == 0
    assert again.stdout == result.stdout
    assert "sample" not in again.stderr
    assert {path.name for path in (tmp_path / "c").iterdir()} == {
        *("run.json", "calibration", "quantized", "comparison", "contest.json"),
        *("report.html", "sheet.png"),
    }
    return told, result.stdout


def test_shootout(viditq, float_pipeline, prompt_file, tmp_path):
    told, table = run_contest(
        viditq,
        tmp_path,
        *("shootout", float_pipeline, "--bits", "w8a8", "--methods", "naive"),
        *("--prompts", prompt_file),
    )
    rows = {row["name"]: row for row in told["rows"]}
    assert set(rows) == {"w8a8", "w8a8-naive"}
    gain = rows["w8a8-naive"]["gain"]
    expected = rows["w8a8-naive"]["psnr_db"] - rows["w8a8"]["psnr_db"]
    assert gain["psnr_db"] == pytest.approx(expected)
    assert f"{expected:+.1f} {gain['outcome']}" in table
    assert "over w8a8" in table


def test_ablate(viditq, float_pipeline, prompt_file, tmp_path):
    ladder = tmp_path / "mine.toml"
    ladder.write_text(
        '[[step]]\nname = "tensor"\ngranularity = "tensor"\n'
        '[[step]]\nname = "token"\ngranularity = "token"\n'
    )
    told, table = run_contest(
        viditq,
        tmp_path,
        *("ablate", float_pipeline, "--bits", "w8a8", "--ladder", ladder),
        *("--prompts", prompt_file),
    )
    assert [row["name"] for row in told["rows"]] == ["w8a8-1-tensor", "w8a8-2-token"]
    assert told["rows"][0]["gain"] is None
    assert told["rows"][1]["gain"]["over"] == "w8a8-1-tensor"
    assert table.index("1-tensor") < table.index("2-token")


def test_analyze(viditq, float_pipeline, prompt_file, tmp_path):
    result = viditq(
        *("analyze", float_pipeline, "--prompts", prompt_file, "--num", 1, "--steps", 2),
        *("--out", tmp_path / "a", "--json", tmp_path / "a.json"),
    )
    assert result.exit_code == 0, result.output
    assert "timestep:" in result.stdout
    assert "static share:" in result.stdout
    assert json.loads((tmp_path / "a.json").read_text())["num"] == 1


def test_demo(viditq, float_pipeline, tmp_path, monkeypatch):
    """On tiny pipelines under the bundled names: the path is the same."""
    from viditq.zoo import catalog

    latte = tiny.saved(tiny.latte(), tmp_path / "latte")
    folders = {"shapes-image": float_pipeline, "shapes-video": latte}
    monkeypatch.setattr(catalog, "bundled_path", folders.__getitem__)
    result = viditq(
        *("demo", "--num-images", 2, "--num-videos", 1, "--steps", 2, "--out", tmp_path / "demo"),
        *("--json", tmp_path / "demo.json"),
    )
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "demo.json").read_text())
    assert [one["pipeline"] for one in told["comparisons"]] == ["shapes-image", "shapes-video"]
    names = [result["name"] for result in told["comparisons"][0]["results"]]
    assert names == ["w8a8-naive", "w8a8", "w4a8-naive", "w4a8"]
    assert told["comparisons"][0]["results"][1]["source"] == "shapes-image/w8a8"
    demo = tmp_path / "demo"
    assert (demo / "report.html").is_file()
    assert (demo / "shapes-video" / "w4a8" / "model_index.json").is_file()
    assert not (demo / "shapes-image" / "calibration").exists()


def test_convert_opensora(viditq, tmp_path):
    torch.save(upstream.weights(), tmp_path / "model.pth")
    other = tiny.saved(tiny.opensora(caption=12), tmp_path / "other")
    sources = ("--text-encoder", other, "--vae", other)
    arguments = (tmp_path / "model.pth", tmp_path / "out", *sources, "--size", 16, "--frames", 3)
    result = viditq("convert-opensora", *arguments, "--heads", 5)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "5 heads" in result.stderr
    result = viditq("convert-opensora", *arguments, "--heads", 3, "--json", tmp_path / "told.json")
    assert result.exit_code == 0, result.output
    assert "OpenSoraPipeline" in result.stdout
    told = json.loads((tmp_path / "told.json").read_text())
    assert told == {"out": str(tmp_path / "out"), "pipeline": "OpenSoraPipeline"}
    made = ("--prompt", "a red star", "--steps", 2, "--out", tmp_path / "a.mp4")
    assert viditq("generate", tmp_path / "out", *made).exit_code == 0


def test_convert_latte(viditq, tmp_path):
    torch.save({"ema": upstream.weights(upstream.LATTE)}, tmp_path / "ucf101.pt")
    tiny.autoencoder().save_pretrained(tmp_path / "vae")
    arguments = (tmp_path / "ucf101.pt", tmp_path / "out", "--vae", tmp_path / "vae")
    result = viditq("convert-latte", *arguments, "--heads", 5)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "5 heads" in result.stderr
    result = viditq("convert-latte", *arguments, "--heads", 3, "--json", tmp_path / "told.json")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "told.json").read_text())
    assert told == {"out": str(tmp_path / "out"), "pipeline": "LatteClassPipeline"}
    made = ("--steps", 2, "--out", tmp_path / "a.mp4")
    assert viditq("generate", tmp_path / "out", "--prompt", "4", *made).exit_code == 0
    result = viditq("generate", tmp_path / "out", "--prompt", "a red star", *made)
    assert result.exit_code == 2
    assert "There is no class 'a red star'" in result.stderr
