"""Samples that are made with CUDA graphs are those that are made without."""

import pytest
import torch

from viditq import pipelines
from viditq.evaluation.sampling import Settings, Source, full_fp32, sample
from viditq.graphs import capture_, is_captured

PROMPTS, SEEDS = ["a red star", "a small blue square", "a green ring"], [3, 4, 5]


def settings(device: str) -> Settings:
    return Settings(PROMPTS, SEEDS, steps=3, guidance=4.5, device=device, batch_size=2)


@pytest.mark.parametrize("kind", ["image", "video"])
class TestSample:
    def test_on_a_cpu_nothing_is_captured(self, floats, kind, tmp_path, monkeypatch):
        monkeypatch.setattr("viditq.evaluation.sampling.capture_", pytest.fail)
        assert len(sample(Source(floats[kind]), tmp_path / "s", settings("cpu"))) == 3

    @pytest.mark.gpu
    def test_on_a_gpu_steps_are_replayed_and_samples_stay(
        self, floats, kind, tmp_path, monkeypatch
    ):
        captured = []

        def capture(transformer):
            captured.append(transformer)
            capture_(transformer)

        monkeypatch.setattr("viditq.evaluation.sampling.capture_", capture)
        store = sample(Source(floats[kind]), tmp_path / "s", settings("cuda"))
        assert all(is_captured(transformer) for transformer in captured)
        assert captured
        pipe = pipelines.load(floats[kind], device="cuda")
        with full_fp32():
            plain = pipelines.generate(pipe, PROMPTS, SEEDS, steps=3, batch_size=2)
        for index, expected in enumerate(plain):
            torch.testing.assert_close(store.read(index), expected, atol=1e-5, rtol=0)
