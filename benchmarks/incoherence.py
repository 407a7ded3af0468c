"""How far outliers stand out in the bundled pipelines and their stress variants: the table of
docs/zoo.md.

    python benchmarks/incoherence.py

Four held-out scenes are rendered, encoded and noised; incoherence is max|x| / mean|x| of the input
of a linear layer over all four. Printed is the median over the layers in the blocks whose inputs a
stress variant scales. It takes seconds on a CPU.
"""

from statistics import median
from typing import Any

import torch
from diffusers import LattePipeline
from torch import Tensor, nn

from viditq import pipelines
from viditq.zoo import catalog
from viditq.zoo.batches import SceneBatch
from viditq.zoo.draw import FRAMES, render
from viditq.zoo.scenes import Scene
from viditq.zoo.text import TOKENS

SCENES = 4
TIMES = (900, 400, 60)
UNSCALED = ("attn2.to_q", "ff.net.2", "temporal_attn.to_qkv")
"""Inputs that a stress variant leaves as they are."""


@torch.no_grad()
def incoherences(name: str) -> list[float]:
    """The median incoherence at each of ``TIMES``."""
    pipe = pipelines.load(name)
    captions = catalog.held_out_prompts(name.removesuffix("-stress"), SCENES)
    words = pipe.tokenizer(captions, padding="max_length", max_length=TOKENS, return_tensors="pt")
    context = pipe.text_encoder(words.input_ids, words.attention_mask)[0]
    scenes = SceneBatch.of([Scene.parse(caption) for caption in captions])
    frames = render(scenes, torch.Generator().manual_seed(0))  # (N, T, 3, H, W)
    clean = pipe.vae.encode(frames.flatten(0, 1) * 2 - 1).latent_dist.mode()
    clean = (clean * pipe.vae.config.scaling_factor).unflatten(0, frames.shape[:2])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    medians = []
    for time in TIMES:
        share = pipe.scheduler.alphas_cumprod[time]
        noisy = share.sqrt() * clean + (1 - share).sqrt() * noise
        options: dict[str, Any] = {"timestep": torch.full((SCENES,), time)}
        options["encoder_attention_mask"] = words.attention_mask
        if frames.shape[1] == 1:
            noisy = noisy[:, 0]
            options["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
        else:
            noisy = noisy.transpose(1, 2)
        if isinstance(pipe, LattePipeline):
            bias = -10000.0 * (1 - words.attention_mask.float())
            options["encoder_attention_mask"] = bias[:, None].repeat_interleave(FRAMES, 0)
        seen = watched(pipe.transformer, noisy, encoder_hidden_states=context, **options)
        medians.append(median(seen.values()))
    return medians


def watched(model: nn.Module, noisy: Tensor, **options: Any) -> dict[str, float]:
    """The incoherence of each layer's input during one call."""
    seen: dict[str, float] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0].abs()
            seen[name] = float(x.amax() / x.mean())

        return hook

    handles = [
        layer.register_forward_pre_hook(watch(name))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and "blocks." in name and not name.endswith(UNSCALED)
    ]
    model(noisy, return_dict=False, **options)
    for handle in handles:
        handle.remove()
    return seen


def main() -> None:
    print("| | t = " + " | ".join(map(str, TIMES)) + " |")
    print("|---" * (len(TIMES) + 1) + "|")
    for name in catalog.BUNDLED:
        print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in incoherences(name)) + " |")


if __name__ == "__main__":
    main()
