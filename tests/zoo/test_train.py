"""Every stage of the training runs, saves, resumes and leaves stock directories; tiny, on CPU."""

import json
import sys
import warnings

import pytest
import torch
from torch import nn

import viditq
from viditq.zoo import bundled_path, held_out_prompts
from viditq.zoo.evaluate import load, sample
from viditq.zoo.stress import write_stress
from viditq.zoo.train.__main__ import main
from viditq.zoo.train.loop import Trainer
from viditq.zoo.train.models import make_transformer
from viditq.zoo.train.stability import centre_keys


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


@pytest.mark.parametrize("kind", ["image", "video", "stdit"])
def test_centred_keys_change_nothing_but_the_noise(kind):
    """Same output; and where keys share a large part, bf16 gradients stay those of fp32."""
    torch.manual_seed(0)
    model = make_transformer(kind)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.06)
    blocks = model.transformer_blocks if kind != "video" else model.temporal_transformer_blocks
    queries = blocks[0].attn1.to_qkv if kind == "stdit" else blocks[0].attn1.to_q
    keys = queries if kind == "stdit" else blocks[0].attn1.to_k
    with torch.no_grad():
        # queries and keys with a large constant part; keys come second where one layer makes both
        queries.bias[:256] = 8.0
        keys.bias[-512:][:256] = 8.0
    shape = (2, 4, 16, 16) if kind == "image" else (2, 4, 8, 16, 16)
    options = {
        "hidden_states": torch.randn(shape),
        "encoder_hidden_states": torch.randn(2, 5, 128),
        "timestep": torch.tensor([300, 300]),
        "return_dict": False,
    }
    if kind == "image":
        options["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}

    def run(half):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = model(**options)[0]
        output.float().square().mean().backward()
        return output.detach(), queries.weight.grad[:256].flatten().clone()

    def alike(a, b):
        return float(torch.cosine_similarity(a, b, dim=0))

    output, gradient = run(half=False)
    noisy = alike(run(half=True)[1], gradient)
    centre_keys(model)
    again, same = run(half=False)
    torch.testing.assert_close(again, output, rtol=1e-4, atol=1e-4)
    assert alike(same, gradient) > 0.999
    assert alike(run(half=True)[1], gradient) > max(0.99, noisy)


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
    stage("stdit", "--scenes", "8", "--start", str(bundled_path("shapes-video")))
    (tmp_path / "stdit.pt").unlink()
    stage("stdit", "--scenes", "8", "--start", str(tmp_path / "shapes-stdit"))
    for name in ("judge/model.safetensors", "shapes-image/model_index.json"):
        assert (tmp_path / name).is_file()
    assert_is_bundle(tmp_path / "shapes-stdit", tmp_path)


def assert_is_bundle(made, folder):
    """Small enough; sampled, quantized and loaded like the others; and so is its stress variant."""
    assert sum(file.stat().st_size for file in made.rglob("*") if file.is_file()) < 15e6
    prompts = held_out_prompts("shapes-video", 1)
    sizes = {"steps": 2, "guidance": 4.5}
    expected = sample(load(made), "video", prompts, **sizes)
    assert expected.shape == (1, 8, 64, 64, 3)
    assert torch.equal(viditq.generate(viditq.load(made), prompts, [0], **sizes), expected)
    stressed = sample(load(write_stress(made, folder / "stress")), "video", prompts, **sizes)
    torch.testing.assert_close(stressed, expected, rtol=0, atol=1e-4)
    viditq.quantize(made, folder / "w8a8", preset="w8a8", prompts=prompts, steps=2)
    quantized = viditq.generate(viditq.load(folder / "w8a8"), prompts, [0], **sizes)
    assert 0 < (quantized - expected).abs().mean() < 0.02
