"""Latte for classes: video of a class, with the autoencoder of Stable Diffusion.

A diffusers pipeline, sampled as :mod:`viditq.pipelines.video` says. What the others call a prompt
is here a class: its number, or one of its names where ``id2label`` has them. Guidance is against
the network's own class for none and acts on all channels of the noise, as its authors sampled it;
the variance stays that of the class. A network that knows no classes makes what it was trained on:
whatever the prompts say, there is a video for each, and no guidance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from viditq.errors import InputError
from viditq.models.latte_class import LatteClassTransformer3DModel
from viditq.pipelines.video import VideoPipeline, guided, num_samples

__all__ = ["LatteClassPipeline", "LatteClassPipelineOutput"]


@dataclass
class LatteClassPipelineOutput(BaseOutput):
    """``frames``: videos (B, T, C, H, W) in [0, 1], as tensor, array or images; or latents."""

    frames: Any


class LatteClassPipeline(VideoPipeline):
    """Args: the parts, and the names of the classes by number; several are parted by commas."""

    model_cpu_offload_seq = "transformer->vae"

    def __init__(
        self,
        vae: AutoencoderKL,
        transformer: LatteClassTransformer3DModel,
        scheduler: SchedulerMixin,
        id2label: Mapping[Any, str] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, transformer=transformer, scheduler=scheduler)
        self.register_to_config(id2label=id2label)
        self.numbers = {
            _plain(name): int(number)  # a text, once the pipeline was saved
            for number, names in (id2label or {}).items()
            for name in names.split(",")
        }

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | int | Sequence[str | int],
        num_inference_steps: int = 250,
        guidance_scale: float = 7.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> LatteClassPipelineOutput | tuple[Any]:
        """Make one video per class given.

        Args:
            prompt: one or several classes, by number or name; a number may be a text.
            num_inference_steps: denoising steps.
            guidance_scale: of classifier-free guidance; 1 switches it off.
            generator: one for all samples, or one for each.
            latents: (B, C, T, h, w), noise to start from.
            output_type: ``pil``, ``np``, ``pt``, or ``latent``.
            return_dict: give an object with the attribute ``frames`` instead of a tuple.
        """
        labels = self._labels(prompt, guidance_scale)

        def predict(video: Tensor, timestep: Tensor) -> Tensor:
            return self._predict(video, timestep, labels, guidance_scale)

        num = num_samples(prompt)
        video = self._denoised(num, num_inference_steps, predict, generator, latents)
        frames = video if output_type == "latent" else self.decode(video, output_type)
        self.maybe_free_model_hooks()
        return LatteClassPipelineOutput(frames=frames) if return_dict else (frames,)

    def decode(self, latents: Tensor, output_type: str = "pil") -> Any:
        """Latents (B, C, T, h, w) to videos of ``output_type``."""
        return self._decode_images(latents, output_type, self.vae.config.scaling_factor)

    def class_number(self, given: str | int) -> int:
        """The number of a class; :class:`InputError` if there is no such class."""
        classes = self.transformer.num_classes
        number = self.numbers.get(_plain(str(given)), given)
        try:
            number = int(number)
        except ValueError:
            number = -1
        if not 0 <= number < classes:
            known = f" or a name like {next(iter(self.numbers))!r}" if self.numbers else ""
            raise InputError(
                f"There is no class {given!r}: a prompt for this pipeline is a number from 0 to "
                f"{classes - 1}{known}."
            )
        return number

    def _labels(self, prompt: str | int | Sequence[str | int], guidance: float) -> Tensor | None:
        """Class numbers (B,); with guidance, as many times none stand before them."""
        given = [prompt] if isinstance(prompt, (str, int)) else list(prompt)
        if not given or not all(isinstance(one, (str, int)) for one in given):
            raise InputError(f"prompt is a class or a list of classes, not {prompt!r}.")
        if not self.transformer.num_classes:
            return None
        numbers = [self.class_number(one) for one in given]
        none = [self.transformer.null_class] * len(numbers) if guidance > 1 else []
        return torch.tensor(none + numbers, device=self._execution_device)

    def _predict(
        self, latents: Tensor, timestep: Tensor, labels: Tensor | None, guidance: float
    ) -> Tensor:
        """The transformer's output for ``latents`` (B, C, T, h, w), fp32, its noise guided."""
        branches = 1 if labels is None else len(labels) // len(latents)
        predicted = self.transformer(
            torch.cat([latents] * branches).to(self.transformer.dtype),
            timestep=timestep.expand(branches * len(latents)),
            class_labels=labels,
            return_dict=False,
        )[0].float()
        return guided(predicted, guidance, latents.shape[1]) if branches == 2 else predicted


def _plain(name: str) -> str:
    """As names are compared: spaces around them and case do not matter."""
    return name.strip().casefold()
