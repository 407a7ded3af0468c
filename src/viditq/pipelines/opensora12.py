"""Open-Sora 1.2: text to video with STDiT3, a rectified flow and an autoencoder in two stages.

A diffusers pipeline like that of 1.0 (:mod:`viditq.pipelines.opensora`), for any size, length and
frame rate. The flow runs from noise at 1000 to the video at 0 in Euler steps, of which larger and
longer videos take more at the noisy end: time ``t`` becomes ``r t / (1 + (r - 1) t)``, where ``r``
is the root of how many more values a video has than a picture of 512×512. To a prompt is added how
fine the video is to look (``aesthetic_score``), as its training captions had it.

Declined: given frames, which the network takes but no argument here passes on, and what is declined
for 1.0 but other sizes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from viditq.models.opensora_vae import OpenSoraTemporalDecoder
from viditq.models.stdit3 import STDiT3Transformer3DModel
from viditq.pipelines.opensora import OpenSoraPipelineOutput, TextToVideoPipeline
from viditq.pipelines.video import num_samples

__all__ = ["OpenSora12Pipeline", "flow_times", "rectified_flow"]

IMAGE_SCALE = 0.18215
"""Of the latents that the decoder in time gives; the image autoencoder's own factor is not used."""

FPS_OF_A_PICTURE = 120
"""The frame rate that training gave to videos of one frame."""


class OpenSora12Pipeline(TextToVideoPipeline):
    """Args: the parts, and the default size of a video in pixels, its frames, and their rate."""

    model_cpu_offload_seq = "text_encoder->transformer->temporal_decoder->vae"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: T5EncoderModel,
        vae: AutoencoderKL,
        temporal_decoder: OpenSoraTemporalDecoder,
        transformer: STDiT3Transformer3DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        height: int = 240,
        width: int = 426,
        num_frames: int = 51,
        fps: float = 24.0,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            temporal_decoder=temporal_decoder,
            transformer=transformer,
            scheduler=scheduler,
        )
        self.register_to_config(height=height, width=width, num_frames=num_frames, fps=fps)
        self.default_size, self.default_fps = (num_frames, height, width), fps
        config: Any = vae.config
        self.vae_scale_factor = 2 ** (len(config.block_out_channels) - 1)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        fps: float | None = None,
        num_inference_steps: int = 30,
        guidance_scale: float = 7.0,
        aesthetic_score: float | None = 6.5,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> OpenSoraPipelineOutput | tuple[Any]:
        """Make one video per prompt.

        Args:
            prompt: one or several.
            height, width: in pixels; what goes beyond multiples of the autoencoder's 8 is cut off.
            num_frames: of a video; one is a picture.
            fps: frames per second.
            num_inference_steps: denoising steps.
            guidance_scale: of classifier-free guidance; 1 switches it off.
            aesthetic_score: what to say of the looks, about 4 to 7; ``None``: nothing.
            generator: one for all samples, or one for each.
            latents: (B, *latent_shape()), noise to start from.
            output_type: ``pil``, ``np``, ``pt``, or ``latent``.
            return_dict: give an object with the attribute ``frames`` instead of a tuple.
        """
        given = (num_frames, height, width)
        frames, height, width = (a or b for a, b in zip(given, self.default_size, strict=True))
        texts = [prompt] if isinstance(prompt, str) else prompt
        if aesthetic_score is not None and all(isinstance(text, str) for text in texts):
            texts = [f"{text} aesthetic score: {aesthetic_score:.1f}." for text in texts]
        captions, mask = self._captions(texts, guidance_scale)
        device = self._execution_device
        if latents is None:
            shape = (num_samples(prompt), *self.latent_shape(frames, height, width))
            latents = randn_tensor(shape, generator, device, torch.float32)
        video = latents.to(device, torch.float32)
        rate = FPS_OF_A_PICTURE if frames == 1 else fps or self.default_fps
        rates = torch.full((len(captions),), float(rate), device=device)
        times = flow_times(num_inference_steps, frames, height, width)
        self.scheduler.set_timesteps(sigmas=times, device=device)
        progress_bar: Any = self.progress_bar
        for timestep in progress_bar(self.scheduler.timesteps):
            channels = video.shape[1]
            velocity = self._predict(
                video,
                timestep,
                captions,
                mask,
                guidance_scale,
                channels,
                fps=rates,
                height=height,
                width=width,
            )[:, :channels]
            # The network's velocity points to the video, the scheduler's to the noise.
            video = self.scheduler.step(-velocity, timestep, video).prev_sample
        made = video if output_type == "latent" else self.decode(video, frames, output_type)
        self.maybe_free_model_hooks()
        return OpenSoraPipelineOutput(frames=made) if return_dict else (made,)

    def latent_shape(
        self, num_frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> tuple[int, int, int, int]:
        """(C, T, h, w) of the latents of one video."""
        given = (num_frames, height, width)
        frames, height, width = (a or b for a, b in zip(given, self.default_size, strict=True))
        latent_frames = self.temporal_decoder.latent_frames(frames)
        size = height // self.vae_scale_factor, width // self.vae_scale_factor
        return (self.transformer.config.in_channels, latent_frames, *size)

    def decode(self, latents: Tensor, num_frames: int, output_type: str = "pil") -> Any:
        """Latents (B, C, T, h, w) to videos of ``output_type``."""
        latents = latents.to(self.temporal_decoder.dtype)
        frames = self.temporal_decoder.decode(latents, num_frames)
        return self._decode_images(frames, output_type, IMAGE_SCALE)


def flow_times(steps: int, frames: int, height: int, width: int) -> list[float]:
    """Where the steps of the flow begin, 1 (noise) first."""
    latent_frames = max(frames // 17 * 5, 1)
    ratio = (height * width / 512**2 * latent_frames) ** 0.5
    return [ratio * t / (1 + (ratio - 1) * t) for t in (1 - i / steps for i in range(steps))]


def rectified_flow() -> FlowMatchEulerDiscreteScheduler:
    """The sampler of Open-Sora 1.2; its times are those of :func:`flow_times`."""
    return FlowMatchEulerDiscreteScheduler()
