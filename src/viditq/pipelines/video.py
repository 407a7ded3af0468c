"""What viditq's own video pipelines share: denoising step by step, guidance, decoding.

They save, load, offload and take schedulers like those of diffusers. The variance that a network
learned goes to a ``DDPMScheduler`` that is set to take it, which makes the ``iddpm`` of their
authors; for other schedulers it is discarded (they want ``variance_type=None``). Latents stay in
fp32; frames are decoded one by one.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from torch import Tensor

__all__ = ["VideoPipeline", "guided", "iddpm", "num_samples"]


class VideoPipeline(DiffusionPipeline):
    """A pipeline with a ``transformer``, an image autoencoder ``vae`` and a ``scheduler``."""

    def _denoised(
        self,
        num: int,
        steps: int,
        predict: Callable[[Tensor, Tensor], Tensor],
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None,
    ) -> Tensor:
        """Noise, ``latents`` or ``num`` that are drawn, to latent videos (B, C, T, h, w), fp32.

        ``predict`` takes latents and a timestep, and gives the noise in them and, in as many
        channels more, its variance.
        """
        device = self._execution_device
        self.scheduler.set_timesteps(steps, device=device)
        if latents is None:
            shape = (num, *self.transformer.video_shape)
            latents = randn_tensor(shape, generator, device, torch.float32)
        video = latents.to(device, torch.float32) * self.scheduler.init_noise_sigma
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        options = {"generator": generator} if takes_generator else {}
        channels = 2 * video.shape[1] if self._takes_variance() else video.shape[1]
        pipe: Any = self
        for timestep in pipe.progress_bar(self.scheduler.timesteps):
            predicted = predict(self.scheduler.scale_model_input(video, timestep), timestep)
            noise = predicted[:, :channels]
            video = self.scheduler.step(noise, timestep, video, **options).prev_sample
        return video

    def _takes_variance(self) -> bool:
        # Others keep the setting in their configuration when they are made from a DDPMScheduler's.
        learned = self.scheduler.config.get("variance_type") in ("learned", "learned_range")
        return learned and isinstance(self.scheduler, DDPMScheduler)

    def _decode_images(self, latents: Tensor, output_type: str, scale: float) -> Any:
        """Latents (B, C, T, h, w), ``scale`` times those of the autoencoder, to videos."""
        frames = (latents / scale).to(self.vae.dtype)
        video = torch.stack([self.vae.decode(f).sample for f in frames.unbind(2)], dim=2)
        return VideoProcessor().postprocess_video(video.float(), output_type)


def guided(predicted: Tensor, guidance: float, channels: int) -> Tensor:
    """The conditional half of a batch, its first ``channels`` led away from the other half."""
    without, predicted = predicted.chunk(2)
    without = without[:, :channels]
    difference = predicted[:, :channels] - without
    predicted[:, :channels] = without + guidance * difference
    return predicted


def num_samples(prompt: Any) -> int:
    """How many videos a pipeline makes of its argument: one, or one for each of a list."""
    return len(prompt) if isinstance(prompt, Sequence) and not isinstance(prompt, str) else 1


def iddpm() -> DDPMScheduler:
    """An ancestral sampler with the learned variance, of 1000 steps or fewer."""
    return DDPMScheduler(
        variance_type="learned_range", clip_sample=False, timestep_spacing="linspace"
    )
