"""Tiny random video pipelines of diffusers: stock classes, stock saving, text encoders and all.

Saved, they make videos of five frames of 16 × 16 pixels.
"""

import json

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import UMT5Config, UMT5EncoderModel

import tiny
import tiny_transformers

__all__ = ["CAPTIONS", "PIPELINES", "SIZES", "TOKENS", "saved", "wan", "wan22"]

SIZES = {"height": 16, "width": 16, "num_frames": 5}


def saved(pipe, folder):
    """The directory of ``pipe``, which says how large its videos are."""
    pipe.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | SIZES))
    return folder


def wan(**options):
    """Wan 2.1; its autoencoder halves each side and, nearly, the number of frames."""
    torch.manual_seed(0)
    encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        scale_factor_temporal=2,
        scale_factor_spatial=2,
    )
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    transformer = WanTransformer3DModel(**tiny_transformers.WAN)
    return WanPipeline(tiny.tokenizer(), encoder, vae, scheduler, transformer, **options)


def wan22():
    """Wan 2.2 with two experts: of four steps, the first two are of the first."""
    torch.manual_seed(1)
    expert = WanTransformer3DModel(**tiny_transformers.WAN)
    return wan(transformer_2=expert, boundary_ratio=0.875)


PIPELINES = {"wan": wan, "wan22": wan22}

CAPTIONS: dict[str, dict[str, int]] = {}
"""Arguments for captions as long as a pipeline's transformer has them."""

TOKENS = {"wan": 21 * 30 * 52, "wan22": 21 * 30 * 52}
"""Of the calls that ``viditq doctor`` thinks of."""
