"""The networks of the bundled pipelines, small but in the stock classes and layouts.

Widths follow PixArt-Σ, Latte and Open-Sora 1.0 in kind (AdaLN-single, cross-attention to T5, GELU,
biases, learned-sigma outputs that the sampler discards), not in number.
"""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    LatteTransformer3DModel,
    PixArtTransformer2DModel,
)
from torch import nn
from transformers import T5Config, T5EncoderModel

from viditq.models.stdit import STDiTTransformer3DModel
from viditq.zoo.draw import CANVAS, FRAMES
from viditq.zoo.text import SPECIAL, TOKENS, words

__all__ = ["LATENT", "make_scheduler", "make_text_encoder", "make_transformer", "make_vae"]

LATENT = CANVAS // 4
_WIDTH, _HEADS = 256, 4
_TEXT_WIDTH = 128
_ZERO_AT_FIRST = ("attn2.to_out.0", "attn2.to_out", "temporal_attn.to_out", "proj_out")


def make_vae() -> Any:
    # annotated too narrowly in diffusers
    autoencoder: Any = AutoencoderKL
    return autoencoder(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=CANVAS,
        scaling_factor=1.0,
    )


def make_text_encoder() -> Any:
    config = T5Config(
        vocab_size=64,
        d_model=_TEXT_WIDTH,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        is_encoder_decoder=False,
        use_cache=False,
    )
    assert config.vocab_size >= len(SPECIAL) + len(words())
    return T5EncoderModel(config)


def make_transformer(stage: str) -> Any:
    """PixArt's 8 layers ("image"), Latte's 4 of two blocks ("video"), or STDiT's 4 ("stdit")."""
    sizes: dict[str, Any] = {
        "num_attention_heads": _HEADS,
        "attention_head_dim": _WIDTH // _HEADS,
        "in_channels": 4,
        "out_channels": 8,
        "sample_size": LATENT,
        "patch_size": 2,
        "caption_channels": _TEXT_WIDTH,
    }
    blocks: dict[str, Any] = {
        "cross_attention_dim": _WIDTH,
        "attention_bias": True,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
    }
    if stage == "image":
        model = PixArtTransformer2DModel(num_layers=8, **sizes, **blocks)
    elif stage == "video":
        model = LatteTransformer3DModel(num_layers=4, video_length=FRAMES, **sizes, **blocks)
    else:
        model = STDiTTransformer3DModel(
            num_layers=4, video_length=FRAMES, caption_length=TOKENS, mlp_ratio=3.0, **sizes
        )
    _initialise(model)
    return model


def make_scheduler() -> DPMSolverMultistepScheduler:
    """PixArt-Σ's scheduler: linear betas, noise prediction, DPM-Solver++ of order 2."""
    return DPMSolverMultistepScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", prediction_type="epsilon"
    )


@torch.no_grad()
def _initialise(model: nn.Module) -> None:
    """DiT's and PixArt's initialisation: residual branches and the output start near zero."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if "adaln_single" in name or "caption_projection" in name:
                nn.init.normal_(module.weight, std=0.02)
            else:
                nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
            if name.endswith(_ZERO_AT_FIRST):
                nn.init.zeros_(module.weight)
