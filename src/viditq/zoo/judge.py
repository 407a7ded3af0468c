"""Reads back what a picture or clip shows, so that quality is counted without a human.

A small convolutional network looks at each frame; linear heads name the attributes of an image,
and a temporal convolution over the frames names those of a clip, its motion among them. It is
trained on rendered scenes, with noise and blur, never on generated samples.

It declines to say how sure it is, or whether a sample is pretty: it only names.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from viditq.errors import InputError
from viditq.zoo.scenes import ATTRIBUTES, Scene

__all__ = ["Judge", "JudgeNet", "accuracy"]


class _Stage(nn.Module):
    """Halve the resolution, then one residual block."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width_in, width, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.down(x)))
        return x + self.conv2(F.silu(self.conv1(x)))


class JudgeNet(nn.Module):
    """Frames (N, 3, 64, 64) or clips (N, T, 3, 64, 64) in 0..1 to logits by attribute."""

    def __init__(self, widths: Sequence[int] = (32, 48, 80, 112), frame_width: int = 128) -> None:
        super().__init__()
        self.config = {"widths": list(widths), "frame_width": frame_width}
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(_Stage(a, b) for a, b in pairwise(widths))
        # 8 × 8 places stay apart, so that the frame vector knows where things are
        self.squeeze = nn.Conv2d(widths[-1], 32, 1)
        self.frame = nn.Linear(32 * 8 * 8, frame_width)
        self.time1 = nn.Conv1d(frame_width, 128, 3, padding=1)
        self.time2 = nn.Conv1d(128, 128, 3, padding=1)
        self.image_heads = nn.ModuleDict(
            {n: nn.Linear(frame_width, len(a)) for n, a in ATTRIBUTES["image"].items()}
        )
        self.video_heads = nn.ModuleDict(
            {n: nn.Linear(frame_width + 128, len(a)) for n, a in ATTRIBUTES["video"].items()}
        )

    def maps(self, frames: Tensor) -> list[Tensor]:
        """Feature maps of frames (N, 3, H, W) at four resolutions."""
        maps = [F.silu(self.stem(frames * 2 - 1))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps

    def vector(self, frames: Tensor) -> Tensor:
        return F.silu(self.frame(F.silu(self.squeeze(self.maps(frames)[-1])).flatten(1)))

    def forward(self, samples: Tensor) -> dict[str, Tensor]:
        if samples.ndim == 4:
            vector = self.vector(samples)
            return {name: head(vector) for name, head in self.image_heads.items()}
        vectors = self.vector(samples.flatten(0, 1)).unflatten(0, samples.shape[:2])
        motion = F.silu(self.time2(F.silu(self.time1(vectors.transpose(1, 2))))).mean(dim=2)
        vector = torch.cat([vectors.mean(dim=1), motion], dim=1)
        return {name: head(vector) for name, head in self.video_heads.items()}


class Judge:
    """The trained network, with words instead of logits."""

    def __init__(self, net: JudgeNet) -> None:
        self.net = net.eval().requires_grad_(False)

    @staticmethod
    def load(directory: str | Path | None = None, device: str | torch.device = "cpu") -> "Judge":
        """The bundled judge, or the one in ``directory``."""
        folder = Path(directory) if directory else Path(__file__).parent / "bundled" / "judge"
        config = json.loads((folder / "config.json").read_text())
        expected = _attributes_as_json()
        if config.pop("attributes") != expected:
            raise InputError(f"{folder} holds a judge of other scenes than this version draws.")
        net = JudgeNet(**config)
        weights = load_file(folder / "model.safetensors")
        net.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        return Judge(net.to(device))

    def save(self, directory: str | Path) -> None:
        """Write config.json and half-precision weights."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        config = {**self.net.config, "attributes": _attributes_as_json()}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        weights = {n: t.half().contiguous().cpu() for n, t in self.net.state_dict().items()}
        save_file(weights, folder / "model.safetensors")

    @torch.no_grad()
    def read(self, samples: Tensor, batch_size: int = 64) -> list[dict[str, str]]:
        """Name what images (N, H, W, 3) or clips (N, T, H, W, 3), float in 0..1, show."""
        kind = {4: "image", 5: "video"}.get(samples.ndim)
        if kind is None or samples.shape[-1] != 3:
            raise InputError(
                f"The judge reads (N, H, W, 3) or (N, T, H, W, 3), not {tuple(samples.shape)}."
            )
        device = next(self.net.parameters()).device
        readings = []
        for chunk in samples.split(batch_size):
            logits = self.net(chunk.to(device, torch.float32).movedim(-1, -3).contiguous())
            for row in range(chunk.shape[0]):
                reading = {
                    name: ATTRIBUTES[kind][name][int(logits[name][row].argmax())]
                    for name in ATTRIBUTES[kind]
                }
                if reading.get("motion") in ("grow", "shrink"):
                    del reading["size"]
                readings.append(reading)
        return readings

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps [(N, C, h, w)] of images (N, H, W, 3), for a perceptual distance."""
        device = next(self.net.parameters()).device
        return self.net.maps(images.to(device, torch.float32).movedim(-1, -3).contiguous())


def _attributes_as_json() -> dict:
    return {
        kind: {name: list(accepted) for name, accepted in table.items()}
        for kind, table in ATTRIBUTES.items()
    }


def accuracy(readings: Sequence[dict[str, str]], prompts: Sequence[str]) -> dict[str, float]:
    """Per attribute, the share of samples that show what their caption says.

    Only what a caption says counts: a growing shape has no one size. Attributes that no caption
    says are left out; "all" is the share of samples with every said attribute right.
    """
    if len(readings) != len(prompts):
        raise InputError(f"{len(readings)} samples were read for {len(prompts)} prompts.")
    said = [Scene.parse(prompt).attributes() for prompt in prompts]
    right: dict[str, list[bool]] = {}
    for reading, scene in zip(readings, said, strict=True):
        agreed = {name: reading.get(name) == value for name, value in scene.items()}
        for name, agrees in {**agreed, "all": all(agreed.values())}.items():
            right.setdefault(name, []).append(agrees)
    return {name: sum(values) / len(values) for name, values in right.items()}
