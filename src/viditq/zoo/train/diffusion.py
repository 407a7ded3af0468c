"""Trains a pipeline's transformer and text encoder together, on latents kept on the device.

Noise prediction, uniform timesteps, one caption in ten dropped for classifier-free guidance. The
squared error is weighted by ᾱ^(-1/2), half-way between noise and v prediction: what a caption alone
decides, such as a direction, is decided at high noise, where the plain error is 50 times smaller
than at low noise and its gradient drowns.

What the transformer sees of a caption must be what its pipeline shows it. PixArt's passes the
padding mask, so training does. Open-Sora's does too, and its empty caption is the network's own,
cut to the length of the prompt it stands beside. Latte's passes none: for one prompt it crops the
caption to its words and the empty caption to as many tokens, for several it zeroes the padding up
to 120 tokens and leaves the empty caption's padding as it is. Padding tokens are alike, so n of
them count in the attention's softmax as one token with bias log n; training draws either form for
each sample.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5EncoderModel

from viditq.zoo.draw import FRAMES
from viditq.zoo.text import TOKENS, caption_table
from viditq.zoo.train.autoencoder import encode
from viditq.zoo.train.loop import Trainer
from viditq.zoo.train.models import LATENT, make_scheduler, make_text_encoder, make_transformer
from viditq.zoo.train.reading import draw_bank
from viditq.zoo.train.stability import centre_keys
from viditq.zoo.train.warm_start import begin_from

__all__ = ["latte_context", "open_sora_context", "train_diffusion"]

_DROP = 0.1
_HIDDEN = -10000.0
_LATTE_TOKENS = 120


def train_diffusion(
    stage: str,
    vae: Any,
    folder: Path,
    minutes: float,
    device: torch.device,
    *,
    scenes: int,
    batch: int,
    peak_rate: float,
    anneal: bool = True,
    start: Path | None = None,
) -> dict[str, nn.Module]:
    """Train for ``minutes`` and return the averaged transformer and text encoder.

    ``stage`` is "image", "video" or "stdit". ``scenes`` are drawn and encoded once. ``start`` is a
    pipeline directory to begin from.
    """
    kind = "image" if stage == "image" else "video"
    table, lengths = (part.to(device) for part in caption_table(kind))

    transformer, text_encoder = make_transformer(stage), make_text_encoder()
    if start is not None:
        transformer, text_encoder = begin_from(start, transformer, text_encoder)
    # The stock loaders hand models over in evaluation mode; there is no dropout, so it may stay.
    modules = {"transformer": transformer.to(device), "text_encoder": text_encoder.to(device)}
    trainer = Trainer(stage, modules, folder, peak_rate=peak_rate, ema_decay=0.9995)
    trainer.resume()
    # a later call draws other scenes
    torch.manual_seed(3 + trainer.step)
    generator = torch.Generator(device).manual_seed(3 + trainer.step)
    latents, numbers = _latent_bank(kind, vae, scenes, generator)
    print(f"{stage}: {scenes} scenes drawn and encoded", flush=True)
    centre_keys(transformer)
    if device.type == "cuda":
        blocks = [*transformer.transformer_blocks]
        blocks += [*getattr(transformer, "temporal_transformer_blocks", [])]
        for block in blocks:
            block.compile()
    kept = make_scheduler().alphas_cumprod.to(device)

    def step() -> Tensor:
        rows = torch.randint(len(latents), (batch,), device=device)
        clean = latents[rows].float()
        times = torch.randint(len(kept), (batch,), device=device)
        share = kept[times].view(-1, *[1] * (clean.ndim - 1))
        noise = torch.randn(clean.shape, device=device)
        noisy = share.sqrt() * clean + (1 - share).sqrt() * noise
        dropped = torch.rand(batch, device=device) < _DROP
        captions = numbers[rows].masked_fill(dropped, len(table) - 1)
        ids, length = table[captions], lengths[captions]
        mask = torch.arange(TOKENS, device=device) < length[:, None]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            context = _encode_text(text_encoder, ids, mask)
            # how long the caption is that this one, perhaps empty, stands beside
            beside = lengths[numbers[rows]]
            options: dict[str, Any] = {}
            if stage == "image":
                options["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
            elif stage == "video":
                many = torch.rand(batch, device=device) < 0.5
                context, bias = latte_context(context, length, beside, dropped, many)
                mask = bias[:, None].repeat_interleave(FRAMES, dim=0)
            else:
                null_caption = transformer.null_caption
                context, mask = open_sora_context(context, null_caption, beside, dropped)
            made = transformer(
                noisy if kind == "image" else noisy.transpose(1, 2),
                encoder_hidden_states=context,
                encoder_attention_mask=mask,
                timestep=times,
                return_dict=False,
                **options,
            )[0][:, :4]
            made = made if kind == "image" else made.transpose(1, 2)
        return ((made.float() - noise).square() * share.rsqrt()).mean()

    loss = trainer.run(step, minutes, anneal=anneal)
    print(f"{stage}: step {trainer.step}, {trainer.seconds_before:.0f} s, loss {loss:.5f}")
    return trainer.ema


def _encode_text(text_encoder: T5EncoderModel, ids: Tensor, mask: Tensor) -> Tensor:
    """What ``text_encoder(ids, mask)`` gives, in operations that never wait for the device."""
    embedding = text_encoder.get_input_embeddings().weight
    chosen = ids[..., None] == torch.arange(len(embedding), device=ids.device)
    bias = torch.zeros(mask.shape, device=ids.device).masked_fill(~mask, _HIDDEN)
    output = text_encoder(
        inputs_embeds=chosen.to(embedding.dtype) @ embedding, attention_mask=bias[:, None, None]
    )
    return output.last_hidden_state


def latte_context(
    context: Tensor, length: Tensor, beside: Tensor, dropped: Tensor, many: Tensor
) -> tuple[Tensor, Tensor]:
    """The caption tokens (B, 16, C) and attention bias (B, 16) that ``LattePipeline`` amounts to.

    ``context`` is the text encoder's output (B, 16, C), ``length`` (B,) its tokens, ``beside`` (B,)
    the length of the prompt an empty caption stands beside, ``dropped`` (B,) whether the caption
    is empty, ``many`` (B,) whether the pipeline got several prompts.
    """
    place = torch.arange(TOKENS, device=context.device)[None]
    inside = place < length[:, None]
    # an empty caption keeps its padding's embedding, a prompt's padding is zeroed
    context = context * (inside | dropped[:, None])[..., None]
    shown = torch.where(many, torch.full_like(beside, _LATTE_TOKENS), beside)
    padding = (shown - length).clamp(min=0)
    bias = torch.where(inside, 0.0, _HIDDEN)
    first = (place == length[:, None]) & (padding > 0)[:, None]
    bias = torch.where(first, padding.clamp(min=1).log()[:, None], bias)
    return context, bias


def open_sora_context(
    context: Tensor, null_caption: Tensor, beside: Tensor, dropped: Tensor
) -> tuple[Tensor, Tensor]:
    """The caption tokens (B, 16, C) and mask (B, 16) bool that ``OpenSoraPipeline`` shows.

    ``context`` is the text encoder's output (B, 16, C), ``null_caption`` (16, C) the network's,
    ``beside`` (B,) the length of the caption or of the one that an empty caption stands beside,
    ``dropped`` (B,) whether the caption is empty.
    """
    shown = torch.where(dropped[:, None, None], null_caption.to(context.dtype), context)
    return shown, torch.arange(TOKENS, device=context.device) < beside[:, None]


@torch.no_grad()
def _latent_bank(
    kind: str, vae: Any, number: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Scaled latents (N, 4, 16, 16) or (N, 8, 4, 16, 16), halves, and caption rows (N,)."""
    piece = 16384 if kind == "image" else 2048
    frames = FRAMES if kind == "video" else 1
    latents, numbers = [], []
    half = generator.device.type == "cuda"
    for start in range(0, number, piece):
        batch, drawn = draw_bank(kind, min(piece, number - start), generator)
        for part in drawn.flatten(0, 1).split(4096):
            with torch.autocast(generator.device.type, torch.bfloat16, enabled=half):
                latents.append((encode(vae, part.float() / 255).float()).half())
        numbers.append(batch.numbers())
    bank = torch.cat(latents).float() * vae.config.scaling_factor
    assert bank.isfinite().all()
    bank = bank.half().view(number, frames, 4, LATENT, LATENT)
    return (bank if kind == "video" else bank[:, 0]), torch.cat(numbers)
