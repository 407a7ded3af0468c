"""Trains the judge on rendered images and clips of every combination, with noise and blur."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from viditq.zoo.batches import SceneBatch, random_batch
from viditq.zoo.draw import render
from viditq.zoo.judge import Judge, JudgeNet
from viditq.zoo.scenes import ATTRIBUTES
from viditq.zoo.train.loop import Trainer

__all__ = ["draw_bank", "judge_accuracy", "train_judge"]


def draw_bank(
    kind: str, number: int, generator: torch.Generator, *, everything: bool = False
) -> tuple[SceneBatch, Tensor]:
    """``number`` scenes and their frames (N, T, 3, 64, 64) uint8, drawn in pieces."""
    batch = random_batch(kind, number, generator, everything=everything)
    piece = 512 if kind == "video" else 4096
    frames = [
        (render(batch[start : start + piece], generator) * 255).round().to(torch.uint8)
        for start in range(0, number, piece)
    ]
    return batch, torch.cat(frames)


def _spoil(frames: Tensor) -> Tensor:
    """Noise, blur and a change of brightness, one strength per sample."""
    flat = frames.flatten(0, 1)
    blurred = F.avg_pool2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    blurred = blurred.view_as(frames)
    shape = (frames.shape[0], 1, 1, 1, 1)
    blur = torch.rand(shape, device=frames.device) * 0.8
    noise = torch.rand(shape, device=frames.device) * 0.06
    gain = 1 + 0.2 * (torch.rand(shape, device=frames.device) - 0.5)
    spoilt = (frames + blur * (blurred - frames)) * gain
    return (spoilt + noise * torch.randn_like(frames)).clamp(0, 1)


def _loss(logits: dict[str, Tensor], batch: SceneBatch) -> Tensor:
    total = torch.zeros((), device=batch.indices.device)
    for name in ATTRIBUTES[batch.kind]:
        target = batch.column(name)
        if name == "size" and batch.kind == "video":
            names = ATTRIBUTES["video"]["motion"]
            motion = batch.column("motion")
            changing = (motion == names.index("grow")) | (motion == names.index("shrink"))
            target = target.masked_fill(changing, -100)
        total = total + F.cross_entropy(logits[name].float(), target, label_smoothing=0.01)
    return total


def train_judge(
    folder: Path, minutes: float, device: torch.device, *, images: int, clips: int, batch: int
) -> Judge:
    """Train on banks of ``images`` images and ``clips`` clips, as many frames of each a step."""
    generator = torch.Generator(device).manual_seed(1)
    banks = {
        "image": draw_bank("image", images, generator, everything=True),
        "video": draw_bank("video", clips, generator, everything=True),
    }
    net: Any = JudgeNet().to(device)
    net.to(memory_format=torch.channels_last)
    trainer = Trainer("judge", {"net": net}, folder, peak_rate=2e-3, anneal_from=0.3)
    trainer.resume()

    def step() -> Tensor:
        total = torch.zeros((), device=device)
        for kind, (scenes, frames) in banks.items():
            number = batch if kind == "image" else batch // 8
            rows = torch.randint(len(scenes), (number,), device=device)
            clip = _spoil(frames[rows].float() / 255)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                total = total + _loss(net(clip if kind == "video" else clip[:, 0]), scenes[rows])
        return total

    trainer.run(step, minutes)
    judge = Judge(trainer.ema["net"])
    judge.save(folder / "judge")
    fresh = min(4096, images)
    for kind in banks:
        print(f"judge on fresh {kind}s:", judge_accuracy(judge, kind, fresh, device), flush=True)
    return judge


@torch.no_grad()
def judge_accuracy(
    judge: Judge, kind: str, number: int, device: torch.device, seed: int = 77, through=None
) -> dict[str, float]:
    """Accuracy per attribute on fresh scenes, seen through a function of frames if one is given."""
    from viditq.zoo.judge import accuracy

    generator = torch.Generator(device).manual_seed(seed)
    batch, frames = draw_bank(kind, number, generator, everything=True)
    readings = []
    for piece in frames.split(256):
        samples = piece.float() / 255
        if through is not None:
            samples = through(samples.flatten(0, 1)).view_as(samples)
        samples = samples.movedim(-3, -1)
        readings += judge.read(samples if kind == "video" else samples[:, 0], batch_size=256)
    captions = [scene.caption() for scene in batch.scenes()]
    return {name: round(share, 4) for name, share in accuracy(readings, captions).items()}
