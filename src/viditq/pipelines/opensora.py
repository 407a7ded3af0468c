"""Open-Sora 1.0: text to video with STDiT, a T5 and the autoencoder of Stable Diffusion.

A diffusers pipeline, sampled as :mod:`viditq.pipelines.video` says. Captions are put into lower
case and padded to the network's length; padding is masked. Guidance is against the network's own
empty caption, cut to the length of the prompt, and acts on the first three of four channels: so its
authors sampled the model, and ``guided_channels`` can say otherwise.

Declined: negative prompts, for which the empty caption would have to go; sizes other than the
network's; and the cleaning of scraped captions (addresses, tags, file names).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from viditq.errors import InputError
from viditq.models.stdit import STDiTTransformer3DModel
from viditq.pipelines.video import VideoPipeline, guided, num_samples

__all__ = ["OpenSoraPipeline", "OpenSoraPipelineOutput", "TextToVideoPipeline"]


@dataclass
class OpenSoraPipelineOutput(BaseOutput):
    """``frames``: videos (B, T, C, H, W) in [0, 1], as tensor, array or images; or latents."""

    frames: Any


class TextToVideoPipeline(VideoPipeline):
    """What the versions of Open-Sora share: captions, and guidance against the empty one."""

    model_cpu_offload_seq = "text_encoder->transformer->vae"

    def _captions(self, prompt: str | Sequence[str], guidance: float) -> tuple[Tensor, Tensor]:
        """:meth:`encode_prompt`; with guidance, as many empty captions stand before them."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts or not all(isinstance(text, str) for text in prompts):
            raise InputError(f"prompt is a text or a list of texts, not {prompt!r}.")
        captions, mask = self.encode_prompt(prompts)
        if guidance > 1:
            with _own_tensors(self.transformer):
                empty = self.transformer.null_caption.to(captions).expand_as(captions)
            captions, mask = torch.cat([empty, captions]), torch.cat([mask, mask])
        return captions, mask

    def encode_prompt(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions (B, L, C) in the transformer's dtype, and (B, L) which tokens are no padding."""
        tokens = self.tokenizer(
            [text.lower().strip() for text in prompts],
            max_length=self.transformer.config.caption_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(self._execution_device)
        captions = self.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
        return captions.to(self.transformer.dtype), tokens.attention_mask

    def _predict(
        self,
        latents: Tensor,
        timestep: Tensor,
        captions: Tensor,
        mask: Tensor,
        guidance: float,
        guided_channels: int,
        **conditions: Any,
    ) -> Tensor:
        """The transformer's output for ``latents`` (B, C, T, h, w), fp32, some channels guided."""
        branches = len(captions) // len(latents)
        predicted = self.transformer(
            torch.cat([latents] * branches).to(captions.dtype),
            timestep=timestep.expand(len(captions)),
            encoder_hidden_states=captions,
            encoder_attention_mask=mask,
            return_dict=False,
            **conditions,
        )[0].float()
        return guided(predicted, guidance, guided_channels) if branches == 2 else predicted


@contextmanager
def _own_tensors(module: Any) -> Iterator[None]:
    """The tensors of ``module`` itself have values in the block.

    Where accelerate offloads module by module, they have none but while the module is called.
    """
    hook = getattr(module, "_hf_hook", None)
    if hook is None or not any(t.is_meta for t in module.parameters(recurse=False)):
        yield
        return
    hook.pre_forward(module)
    try:
        yield
    finally:
        hook.post_forward(module, None)


class OpenSoraPipeline(TextToVideoPipeline):
    """Args: the parts, and how many of the latent channels guidance acts on."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: T5EncoderModel,
        vae: AutoencoderKL,
        transformer: STDiTTransformer3DModel,
        scheduler: SchedulerMixin,
        guided_channels: int = 3,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            transformer=transformer,
            scheduler=scheduler,
        )
        self.register_to_config(guided_channels=guided_channels)
        self.guided_channels = guided_channels

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        num_inference_steps: int = 100,
        guidance_scale: float = 7.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> OpenSoraPipelineOutput | tuple[Any]:
        """Make one video per prompt.

        Args:
            prompt: one or several.
            num_inference_steps: denoising steps.
            guidance_scale: of classifier-free guidance; 1 switches it off.
            generator: one for all samples, or one for each.
            latents: (B, C, T, h, w), noise to start from.
            output_type: ``pil``, ``np``, ``pt``, or ``latent``.
            return_dict: give an object with the attribute ``frames`` instead of a tuple.
        """
        captions, mask = self._captions(prompt, guidance_scale)

        def predict(video: Tensor, timestep: Tensor) -> Tensor:
            return self._predict(
                video, timestep, captions, mask, guidance_scale, self.guided_channels
            )

        num = num_samples(prompt)
        video = self._denoised(num, num_inference_steps, predict, generator, latents)
        frames = video if output_type == "latent" else self.decode(video, output_type)
        self.maybe_free_model_hooks()
        return OpenSoraPipelineOutput(frames=frames) if return_dict else (frames,)

    def decode(self, latents: Tensor, output_type: str = "pil") -> Any:
        """Latents (B, C, T, h, w) to videos of ``output_type``."""
        return self._decode_images(latents, output_type, self.vae.config.scaling_factor)
