"""Every stage of the training runs, saves, resumes and leaves stock directories; tiny, on CPU."""

import json
import sys
import warnings

import pytest
import torch
from torch import nn

from viditq.zoo.train.__main__ import main
from viditq.zoo.train.loop import Trainer
from viditq.zoo.train.stability import SpectralCap


def test_trainer_learns_averages_and_resumes(tmp_path):
    torch.manual_seed(0)
    net = nn.Linear(4, 1)
    trainer = Trainer("fit", {"net": net}, tmp_path, peak_rate=0.05, warm_up_steps=5)
    x = torch.randn(64, 4)
    y = x @ torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    last = trainer.run(lambda: (net(x) - y).square().mean(), 0.02, log_every=20)
    assert last < 1.0
    assert not torch.equal(trainer.ema["net"].weight, net.weight)
    again = Trainer("fit", {"net": nn.Linear(4, 1)}, tmp_path, peak_rate=0.05)
    assert again.resume()
    assert again.step == trainer.step
    assert torch.equal(again.modules["net"].weight, net.weight)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == trainer.step


def test_spectral_cap():
    torch.manual_seed(0)
    model = nn.ModuleDict({"to_q": nn.Linear(32, 32), "to_k": nn.Linear(32, 32)})
    with torch.no_grad():
        model["to_q"].weight.mul_(40)
    small = model["to_k"].weight.clone()
    cap = SpectralCap(model, 6.0)
    for _ in range(50):
        cap()
    norm = torch.linalg.matrix_norm(model["to_q"].weight, 2)
    assert float(norm) == pytest.approx(6.0, rel=0.02)
    assert torch.equal(model["to_k"].weight, small)


@pytest.mark.slow
def test_stages(tmp_path, monkeypatch):
    def stage(name, *extra):
        arguments = ["train", name, "--work", str(tmp_path), "--minutes", "0.002"]
        arguments += ["--device", "cpu", "--batch", "8", *extra]
        monkeypatch.setattr(sys, "argv", arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            main()

    stage("judge", "--images", "8", "--clips", "2")
    stage("vae", "--images", "8", "--clips", "2")
    stage("image", "--scenes", "8")
    stage("image", "--scenes", "8", "--start", str(tmp_path / "shapes-image"))
    for name in ("judge/model.safetensors", "shapes-image/model_index.json"):
        assert (tmp_path / name).is_file()
