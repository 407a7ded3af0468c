"""Trains the autoencoder that the bundled pipelines share, on images and frames of clips.

The loss is the mean absolute error of pixels and of their differences to neighbours (which keeps
edges sharp), with a light KL term. The latent scale is measured at the end and written into the
config as ``scaling_factor``.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from viditq.zoo.train.loop import Trainer
from viditq.zoo.train.models import make_vae
from viditq.zoo.train.reading import draw_bank

__all__ = ["encode", "reconstruct", "train_autoencoder"]

_KL_WEIGHT = 1e-4


def _edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def train_autoencoder(
    folder: Path, minutes: float, device: torch.device, *, images: int, clips: int, batch: int
) -> Any:
    generator = torch.Generator(device).manual_seed(2)
    frames = torch.cat(
        [
            draw_bank("image", images, generator)[1].flatten(0, 1),
            draw_bank("video", clips, generator)[1].flatten(0, 1),
        ]
    )
    net = make_vae().to(device, memory_format=torch.channels_last)
    if device.type == "cuda":
        net.encoder.compile()
        net.decoder.compile()
    trainer = Trainer("vae", {"vae": net}, folder, peak_rate=1e-3, anneal_from=0.4)
    trainer.resume()

    def step() -> Tensor:
        rows = torch.randint(len(frames), (batch,), device=device)
        x = frames[rows].float() / 127.5 - 1
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            moments = net.quant_conv(net.encoder(x)).float()
            mean, log_variance = moments.chunk(2, dim=1)
            log_variance = log_variance.clamp(-30, 20)
            z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
            y = net.decoder(net.post_quant_conv(z)).float()
        loss = (x - y).abs().mean()
        for truth, made in zip(_edges(x), _edges(y), strict=True):
            loss = loss + 0.5 * (truth - made).abs().mean()
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        return loss + _KL_WEIGHT * divergence

    trainer.run(step, minutes)
    vae: Any = trainer.ema["vae"]
    sample = frames[torch.randint(len(frames), (min(4096, len(frames)),), device=device)] / 255
    latents = torch.cat([encode(vae, piece) for piece in sample.split(512)])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    difference = reconstruct(vae, sample) - sample
    psnr = -10 * (difference**2).mean(dim=(1, 2, 3)).log10().mean()
    print(f"vae scaling_factor={vae.config.scaling_factor} psnr_db={psnr.item():.2f}", flush=True)
    vae.half().save_pretrained(folder / "vae")
    return vae.float()


@torch.no_grad()
def encode(vae: Any, frames: Tensor) -> Tensor:
    """Unscaled mean latents (N, 4, 16, 16) of frames (N, 3, 64, 64) in 0..1."""
    return vae.encode(frames * 2 - 1).latent_dist.mode()


@torch.no_grad()
def reconstruct(vae: Any, frames: Tensor) -> Tensor:
    """Frames (N, 3, 64, 64) in 0..1, encoded and decoded."""
    pieces = [vae.decode(encode(vae, piece)).sample for piece in frames.split(512)]
    return (torch.cat(pieces) / 2 + 0.5).clamp(0, 1)
