"""Tiny random transformers, one or more of every family, and how they are called."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import nn

import tiny

__all__ = ["CASES", "WITHOUT_ADAPTER", "Case", "float_part"]


@dataclass(frozen=True)
class Case:
    """A tiny model of a class, what it is called with, and what stays float in it.

    ``latents`` and ``arguments`` say how a call differs from one with images of 4 × 8 × 8 and
    captions of 5 × 16, or with no captions; all calls are of batch 2, and all sequences longer than
    one token.
    """

    make: Callable[[], nn.Module]
    float_parts: set[str]
    latents: tuple[int, ...] = (2, 4, 8, 8)
    arguments: Callable[[], dict[str, Any]] = dict
    captions: bool = True

    def model(self) -> nn.Module:
        """The same at every time."""
        torch.manual_seed(0)
        return self.make().eval()

    def inputs(self, seed: int = 0) -> dict[str, Any]:
        """Arguments of one call; others for another seed."""
        torch.manual_seed(seed)
        return {
            "hidden_states": torch.randn(self.latents),
            "timestep": torch.tensor([500, 500]),
            **({"encoder_hidden_states": torch.randn(2, 5, 16)} if self.captions else {}),
            **self.arguments(),
            "return_dict": False,
        }


def float_part(name: str) -> str:
    """The part of the model that a layer belongs to; of a block, which part of that."""
    first, *rest = name.split(".")
    return ".".join(rest[1:]) if first.endswith("blocks") else first


SIZE = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}
LATENT = {"in_channels": 4, "out_channels": 4}
PIXART_FLOAT = {"adaln_single", "caption_projection", "proj_out"}
WAN = SIZE | LATENT | {"text_dim": 16, "freq_dim": 16, "ffn_dim": 48}
WAN_FLOAT = {"condition_embedder", "proj_out"}
COGVIDEOX = {
    **SIZE,
    **LATENT,
    "text_embed_dim": 16,
    "time_embed_dim": 16,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 5,
    "max_text_seq_length": 5,
}
JOINT_FLOAT = {"norm1.linear", "norm1_context.linear", "norm_out", "proj_out"}
FLUX_FLOAT = JOINT_FLOAT | {"time_text_embed", "context_embedder", "x_embedder", "norm.linear"}
SD3 = {
    **SIZE,
    **LATENT,
    "num_layers": 3,
    "sample_size": 8,
    "pos_embed_max_size": 8,
    "joint_attention_dim": 16,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 12,
}
SANA = {
    **SIZE,
    **LATENT,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": 16,
    "sample_size": 8,
}
LTX = SIZE | LATENT | {"cross_attention_dim": 32, "caption_channels": 16}
HUNYUAN_VIDEO = {
    **SIZE,
    **LATENT,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "text_embed_dim": 16,
    "pooled_projection_dim": 12,
    "rope_axes_dim": (4, 6, 6),
}
FLUX2 = {
    **SIZE,
    "in_channels": 4,
    "num_single_layers": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": (4, 4, 4, 4),
    "timestep_guidance_channels": 16,
}
QWEN_IMAGE = {
    **SIZE,
    "in_channels": 4,
    "out_channels": 1,
    "joint_attention_dim": 16,
    "axes_dims_rope": (4, 6, 6),
}


def pooled() -> dict[str, Any]:
    return {"pooled_projections": torch.randn(2, 12)}


def padded() -> dict[str, Any]:
    """The second caption is shorter than the first."""
    return {"encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])}


def guided() -> dict[str, Any]:
    return {"timestep": torch.tensor([0.5, 0.3]), "guidance": torch.tensor([3.5, 3.5])}


# More blocks than ten in some of them, so that "10" has to come after "9".
CASES = {
    "pixart": Case(
        lambda: tiny.pixart(layers=11).transformer,
        PIXART_FLOAT,
        arguments=lambda: {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    ),
    "latte": Case(lambda: tiny.latte(layers=2).transformer, PIXART_FLOAT, (2, 4, 2, 8, 8)),
    "latte-class": Case(
        lambda: tiny.latte_class(layers=3),
        {"time_embedding", "modulation", "proj_out"},
        (2, 4, 2, 8, 8),
        lambda: {"class_labels": torch.tensor([1, 3])},  # the last is none
        captions=False,
    ),
    "stdit": Case(lambda: tiny.stdit(), PIXART_FLOAT, (2, 4, 2, 8, 8), padded),
    "stdit3": Case(
        lambda: tiny.stdit3(layers=11),
        {"time_embedding", "fps_embedding", "time_modulation", "caption_projection", "proj_out"},
        (2, 4, 2, 8, 8),
        lambda: padded() | {"fps": torch.tensor([24, 8]), "height": 64, "width": 64},
    ),
    "flux": Case(
        lambda: tiny.flux(layers=11, single_layers=2),
        FLUX_FLOAT,
        arguments=lambda: tiny.flux_inputs(),
    ),
    "wan": Case(lambda: diffusers.WanTransformer3DModel(**WAN), WAN_FLOAT, (2, 4, 2, 8, 8)),
    "wan, image to video": Case(
        lambda: diffusers.WanTransformer3DModel(**WAN, image_dim=16, added_kv_proj_dim=32),
        WAN_FLOAT,
        (2, 4, 2, 8, 8),
        # The caption is what stands behind so many tokens of the image that 512 are left.
        lambda: {
            "encoder_hidden_states": torch.randn(2, 512, 16),
            "encoder_hidden_states_image": torch.randn(2, 5, 16),
        },
    ),
    "cogvideox": Case(
        lambda: diffusers.CogVideoXTransformer3DModel(**COGVIDEOX),
        {"patch_embed", "time_embedding", "norm_out", "proj_out", "norm1.linear", "norm2.linear"},
        (2, 2, 4, 8, 8),
    ),
    "sd3": Case(
        lambda: diffusers.SD3Transformer2DModel(**SD3),
        JOINT_FLOAT | {"time_text_embed", "context_embedder"},
        arguments=pooled,
    ),
    "sd3, 3.5-medium": Case(
        lambda: diffusers.SD3Transformer2DModel(
            **SD3, dual_attention_layers=(0, 1), qk_norm="rms_norm"
        ),
        JOINT_FLOAT | {"time_text_embed", "context_embedder"},
        arguments=pooled,
    ),
    "sana": Case(
        lambda: diffusers.SanaTransformer2DModel(**SANA),
        {"time_embed", "caption_projection", "proj_out"},
        arguments=padded,
    ),
    "ltx": Case(
        lambda: diffusers.LTXVideoTransformer3DModel(**LTX),
        {"proj_in", "time_embed", "caption_projection", "proj_out"},
        (2, 2 * 4 * 4, 4),
        lambda: padded() | {"num_frames": 2, "height": 4, "width": 4},
    ),
    "hunyuan-video": Case(
        lambda: diffusers.HunyuanVideoTransformer3DModel(**HUNYUAN_VIDEO),
        FLUX_FLOAT - {"x_embedder"},
        (2, 4, 2, 8, 8),
        lambda: pooled() | padded() | guided(),
    ),
    "hunyuan-video, image to video": Case(
        lambda: diffusers.HunyuanVideoTransformer3DModel(
            **HUNYUAN_VIDEO, image_condition_type="token_replace"
        ),
        FLUX_FLOAT - {"x_embedder"},
        (2, 4, 2, 8, 8),
        lambda: pooled() | padded() | guided(),
    ),
    "flux2": Case(
        lambda: diffusers.Flux2Transformer2DModel(**FLUX2),
        {
            "time_guidance_embed",
            "double_stream_modulation_img",
            "double_stream_modulation_txt",
            "single_stream_modulation",
            "x_embedder",
            "context_embedder",
            "norm_out",
            "proj_out",
        },
        (2, 16, 4),
        lambda: guided() | {"img_ids": torch.randn(16, 4), "txt_ids": torch.zeros(5, 4)},
    ),
    "qwen-image": Case(
        lambda: diffusers.QwenImageTransformer2DModel(**QWEN_IMAGE),
        {"time_text_embed", "img_in", "txt_in", "img_mod.1", "txt_mod.1", "norm_out", "proj_out"},
        (2, 16, 4),
        lambda: {
            "timestep": torch.tensor([0.5, 0.3]),
            "encoder_hidden_states_mask": padded()["encoder_attention_mask"],
            "img_shapes": [[[1, 4, 4]]] * 2,
        },
    ),
}

# By class: what viditq knows of them is guessed.
WITHOUT_ADAPTER = {
    "AuraFlowTransformer2DModel": Case(
        lambda: diffusers.AuraFlowTransformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_mmdit_layers=2,
            num_single_dit_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=32,
            pos_embed_max_size=16,
        ),
        JOINT_FLOAT | {"time_step_proj", "context_embedder", "pos_embed"},
        arguments=lambda: {"timestep": torch.tensor([0.5, 0.3])},
    ),
    "Lumina2Transformer2DModel": Case(
        lambda: diffusers.Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            axes_dim_rope=(4, 6, 6),
            axes_lens=(16, 16, 16),
            cap_feat_dim=16,
        ),
        # Of the blocks in the first two, the modulation.
        {"layers", "noise_refiner", "x_embedder", "time_caption_embed", "norm_out"},
        arguments=lambda: {
            "timestep": torch.tensor([0.5, 0.3]),
            "encoder_attention_mask": padded()["encoder_attention_mask"].bool(),
        },
    ),
}
