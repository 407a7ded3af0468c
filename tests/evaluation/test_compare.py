"""``compare``: same seeds, honest numbers, nothing made twice, nothing half-written."""

import json
import shutil

import pytest
import torch

from checks import refuses
from viditq import pipelines
from viditq.errors import CheckpointError, InputError, PipelineError
from viditq.evaluation import Comparison, compare, sampling
from viditq.evaluation.compare import partial_folder
from viditq.evaluation.metrics import PSNR_CEILING_DB
from viditq.evaluation.samples import read_sample

PROMPTS = ["a red star", "a blue circle"]
SETTINGS = {"num": 3, "steps": 2, "batch_size": 2}


@pytest.fixture
def calls(monkeypatch):
    """The seeds of every call of ``generate``; ``stop_at`` interrupts that call."""

    class Calls(list):
        stop_at = None

    calls = Calls()

    def generate(pipe, prompts, seeds, **kwargs):
        if calls.stop_at == len(calls):
            raise KeyboardInterrupt
        calls.append(seeds)
        return pipelines.generate(pipe, prompts, seeds, **kwargs)

    monkeypatch.setattr(sampling, "pipelines", _Patched(generate))
    return calls


class _Patched:
    load = staticmethod(pipelines.load)

    def __init__(self, generate):
        self.generate = generate


def test_images(pixart, tmp_path, judge):
    out = tmp_path / "out"
    comparison = compare(
        pixart / "float",
        [pixart / "w8a8-naive"],
        PROMPTS,
        out=out,
        seed=5,
        judge=judge,
        command="viditq compare …",
        **SETTINGS,
    )
    [result] = comparison.results
    assert (comparison.kind, result.name) == ("image", "w8a8-naive")
    assert 5 < result.psnr_db < PSNR_CEILING_DB
    assert result.psnr_db_ci[0] <= result.psnr_db <= result.psnr_db_ci[1]
    assert [(row.seed, row.prompt) for row in result.samples] == [
        (5, "a red star"),
        (6, "a blue circle"),
        (7, "a red star"),
    ]
    assert result.psnr_db == pytest.approx(sum(row.psnr_db for row in result.samples) / 3)
    assert result.judge is None  # no bundled pipeline
    assert result.flow_difference is None
    assert 8 < result.weight_bits < 12
    assert result.size_bytes < result.float_size_bytes
    assert comparison.float_bf16.size_bytes == comparison.float_bf16.float_size_bytes

    document = json.loads((out / "comparison.json").read_text())
    assert {"results", "float", "float_bf16", "provenance"} <= set(document)
    assert {"name", "psnr_db", "psnr_db_ci", "ssim", "feature_distance", "judge"} <= set(
        document["results"][0]
    )
    assert document["provenance"]["command"] == "viditq compare …"
    assert Comparison.load(out) == comparison
    assert (out / "layers" / "w8a8-naive.json").is_file()
    assert not partial_folder(out).exists()


def test_float_samples_are_those_of_the_pipeline(pixart, tmp_path, judge):
    compare(
        pixart / "float", [pixart / "w8a8-naive"], PROMPTS, out=tmp_path, judge=judge, **SETTINGS
    )
    pipe = pipelines.load(pixart / "float")
    expected = pipelines.generate(pipe, [PROMPTS[1]], [1], steps=2)[0]
    stored = read_sample(tmp_path / "samples" / "float", 1)
    assert (stored - expected).abs().max() < 1e-4


def test_videos(latte, tmp_path, judge):
    comparison = compare(
        latte / "float",
        [latte / "w8a8-naive"],
        PROMPTS,
        num=2,
        steps=2,
        out=tmp_path / "out",
        bf16=False,
        judge=judge,
    )
    [result] = comparison.results
    assert comparison.kind == "video"
    assert comparison.float_bf16 is None
    assert result.flow_difference is not None
    assert result.temporal_consistency == pytest.approx(1, abs=0.3)
    assert comparison.float_.temporal_consistency is not None


def test_goes_on_after_an_interrupt(pixart, tmp_path, judge, calls):
    def run():
        return compare(
            pixart / "float",
            [pixart / "w8a8-naive"],
            PROMPTS,
            out=tmp_path / "out",
            bf16=False,
            judge=judge,
            **SETTINGS,
        )

    calls.stop_at = 3  # in the second pipeline's second batch
    with pytest.raises(KeyboardInterrupt):
        run()
    assert not (tmp_path / "out").exists()
    assert calls == [[0, 1], [2], [0, 1]]
    calls.clear()
    calls.stop_at = None
    run()
    assert calls == [[2]]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwrite_uses_samples_again(pixart, tmp_path, judge, calls):
    def run(**changes):
        calls.clear()
        return compare(
            pixart / "float",
            [pixart / "w8a8-naive"],
            PROMPTS,
            out=tmp_path / "out",
            bf16=False,
            judge=judge,
            **{**SETTINGS, **changes},
        )

    first = run()
    with refuses(InputError, "--overwrite"):
        run()
    again = run(overwrite=True)
    assert calls == []
    assert again.results == first.results
    more = run(overwrite=True, num=4)
    assert calls == [[2, 3]] * 2
    assert more.results[0].samples[:2] == first.results[0].samples[:2]
    run(overwrite=True, steps=3)
    assert len(calls) == 4  # all of them: other steps are other samples


def test_samples_of_a_changed_checkpoint_are_made_again(pixart, tmp_path, judge, calls):
    quantized = tmp_path / "q"
    shutil.copytree(pixart / "w8a8-naive", quantized)
    arguments = (pixart / "float", [quantized], PROMPTS)
    settings = {"out": tmp_path / "out", "bf16": False, "judge": judge, **SETTINGS}
    compare(*arguments, **settings)
    calls.clear()
    (quantized / "transformer" / "config.json").touch()
    compare(*arguments, **settings, overwrite=True)
    assert calls == [[0, 1], [2]]


def test_bf16_is_run_in_bf16(pixart, tmp_path, judge, monkeypatch):
    dtypes = []

    class Spy(_Patched):
        @staticmethod
        def load(path, **kwargs):
            dtypes.append(kwargs["dtype"])
            return pipelines.load(path, **kwargs)

    monkeypatch.setattr(sampling, "pipelines", Spy(pipelines.generate))
    compare(
        pixart / "float", [pixart / "w8a8-naive"], PROMPTS, out=tmp_path, judge=judge, **SETTINGS
    )
    assert dtypes == [torch.float32, torch.bfloat16, torch.float32]


def test_bad_input_is_refused_before_any_sample(pixart, latte, tmp_path, judge, calls):
    quantized = pixart / "w8a8-naive"

    def run(float_source, sources, prompts=PROMPTS, **kwargs):
        compare(float_source, sources, prompts, out=tmp_path / "out", judge=judge, **kwargs)

    with refuses(InputError, "at least one"):
        run(pixart / "float", [])
    with refuses(InputError, "w8a8-naive", "two"):
        run(pixart / "float", [quantized, quantized])
    with refuses(PipelineError, "LattePipeline", "PixArtSigmaPipeline"):
        run(pixart / "float", [latte / "w8a8-naive"])
    with refuses(CheckpointError):
        shutil.copytree(pixart / "float", tmp_path / "not-quantized")
        run(pixart / "float", [tmp_path / "not-quantized"])
    with refuses(InputError, "w8a8-naive is quantized"):
        run(quantized, [quantized])
    with refuses(PipelineError, "nowhere"):
        run("nowhere", [quantized])
    with refuses(InputError, "prompts of their own"):
        run(pixart / "float", [quantized], None)
    with refuses(InputError, "no prompts"):
        run(pixart / "float", [quantized], [])
    with refuses(InputError, "num"):
        run(pixart / "float", [quantized], num=0)
    assert calls == []
    assert not (tmp_path / "out").exists()
    assert not partial_folder(tmp_path / "out").exists()


def test_samples_are_made_without_tf32_and_the_setting_is_given_back(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with pytest.raises(KeyError), sampling.full_fp32():
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
        raise KeyError
    assert torch.backends.cudnn.allow_tf32
