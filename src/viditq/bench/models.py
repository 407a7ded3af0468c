"""The full-size models that are measured, as data: public configurations and one step's inputs.

Weights are random, so nothing is downloaded; shapes, and with them the time, are those of the
published checkpoints.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from viditq.errors import InputError

__all__ = ["MODELS", "Fill", "ModelCase", "Noise", "Valid", "make_inputs", "models_named"]


@dataclass(frozen=True)
class Noise:
    """Standard normal numbers in the model's dtype."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Fill:
    """One value everywhere."""

    value: float
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Valid:
    """(B, ``length``) mask of a padded caption: how many tokens of each are valid."""

    counts: tuple[int, ...]
    length: int


@dataclass(frozen=True)
class ModelCase:
    """One model at one size.

    Attributes:
        name: on the command line.
        title: in tables, with the size of what is made.
        transformer: class name in diffusers.
        config: its configuration, as published.
        inputs: arguments of one call; what is no recipe for a tensor is passed as it is.
        blocks: the lists of repeated blocks and the config's fields that say how long they are.
    """

    name: str
    title: str
    transformer: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Any]
    blocks: Mapping[str, str]

    @property
    def one_of_each(self) -> dict[str, Any]:
        """The configuration with one block in each list."""
        return {**self.config, **dict.fromkeys(self.blocks.values(), 1)}


_DIT_XL = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "cross_attention_dim": 1152,
    "attention_bias": True,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "caption_channels": 4096,
}

_WAN_INPUTS = {
    "hidden_states": Noise((1, 16, 21, 60, 104)),
    "timestep": Fill(500, (1,), torch.int64),
    "encoder_hidden_states": Noise((1, 512, 4096)),
}

_SD3_5 = {
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "qk_norm": "rms_norm",
}

_SD3_5_INPUTS = {
    "hidden_states": Noise((2, 16, 128, 128)),
    "encoder_hidden_states": Noise((2, 77 + 256, 4096)),
    "pooled_projections": Noise((2, 2048)),
    "timestep": Fill(500, (2,), torch.int64),
}

MODELS = {
    case.name: case
    for case in (
        ModelCase(
            name="pixart-sigma",
            title="PixArt-Σ-XL, 1024², CFG batch 2",
            transformer="PixArtTransformer2DModel",
            config={
                **_DIT_XL,
                "sample_size": 128,
                "interpolation_scale": 2,
                "use_additional_conditions": False,
            },
            inputs={
                "hidden_states": Noise((2, 4, 128, 128)),
                "encoder_hidden_states": Noise((2, 300, 4096)),
                "encoder_attention_mask": Valid((1, 60), 300),
                "timestep": Fill(500, (2,), torch.int64),
                "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
            },
            blocks={"transformer_blocks": "num_layers"},
        ),
        ModelCase(
            name="latte",
            title="Latte-1, 16 × 512², CFG batch 2",
            transformer="LatteTransformer3DModel",
            config={**_DIT_XL, "sample_size": 64, "video_length": 16},
            inputs={
                "hidden_states": Noise((2, 4, 16, 64, 64)),
                "encoder_hidden_states": Noise((2, 120, 4096)),
                "timestep": Fill(500, (2,), torch.int64),
            },
            blocks={
                "transformer_blocks": "num_layers",
                "temporal_transformer_blocks": "num_layers",
            },
        ),
        ModelCase(
            name="wan-1.3b",
            title="Wan2.1-1.3B, 81 × 480 × 832, batch 1",
            transformer="WanTransformer3DModel",
            config={"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
            inputs=_WAN_INPUTS,
            blocks={"blocks": "num_layers"},
        ),
        ModelCase(
            name="wan-14b",
            title="Wan2.1-14B, 81 × 480 × 832, batch 1",
            transformer="WanTransformer3DModel",
            config={"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
            inputs=_WAN_INPUTS,
            blocks={"blocks": "num_layers"},
        ),
        ModelCase(
            name="flux-dev",
            title="FLUX.1-dev, 1024², batch 1",
            transformer="FluxTransformer2DModel",
            config={"num_layers": 19, "num_single_layers": 38, "guidance_embeds": True},
            inputs={
                "hidden_states": Noise((1, 4096, 64)),
                "encoder_hidden_states": Noise((1, 512, 4096)),
                "pooled_projections": Noise((1, 768)),
                "timestep": Fill(0.5, (1,)),
                "guidance": Fill(3.5, (1,)),
                "img_ids": Noise((4096, 3)),
                "txt_ids": Fill(0, (512, 3)),
            },
            blocks={
                "transformer_blocks": "num_layers",
                "single_transformer_blocks": "num_single_layers",
            },
        ),
        ModelCase(
            name="cogvideox-2b",
            title="CogVideoX-2B, 49 × 480 × 720, batch 1",
            transformer="CogVideoXTransformer3DModel",
            config={"num_layers": 30},
            inputs={
                "hidden_states": Noise((1, 13, 16, 60, 90)),
                "encoder_hidden_states": Noise((1, 226, 4096)),
                "timestep": Fill(500, (1,), torch.int64),
            },
            blocks={"transformer_blocks": "num_layers"},
        ),
        ModelCase(
            name="sd3.5-medium",
            title="SD3.5-medium, 1024², CFG batch 2",
            transformer="SD3Transformer2DModel",
            config={
                **_SD3_5,
                "num_layers": 24,
                "num_attention_heads": 24,
                "caption_projection_dim": 1536,
                "pos_embed_max_size": 384,
                "dual_attention_layers": tuple(range(13)),
            },
            inputs=_SD3_5_INPUTS,
            blocks={"transformer_blocks": "num_layers"},
        ),
        ModelCase(
            name="sd3.5-large",
            title="SD3.5-large, 1024², CFG batch 2",
            transformer="SD3Transformer2DModel",
            config={
                **_SD3_5,
                "num_layers": 38,
                "num_attention_heads": 38,
                "caption_projection_dim": 2432,
                "pos_embed_max_size": 192,
            },
            inputs=_SD3_5_INPUTS,
            blocks={"transformer_blocks": "num_layers"},
        ),
        ModelCase(
            name="sana-1.6b",
            title="Sana-1.6B, 1024², CFG batch 2",
            transformer="SanaTransformer2DModel",
            config={"num_layers": 20},
            inputs={
                "hidden_states": Noise((2, 32, 32, 32)),
                "encoder_hidden_states": Noise((2, 300, 2304)),
                "encoder_attention_mask": Valid((1, 60), 300),
                "timestep": Fill(500, (2,), torch.int64),
            },
            blocks={"transformer_blocks": "num_layers"},
        ),
        ModelCase(
            name="qwen-image",
            title="Qwen-Image, 1024², batch 1",
            transformer="QwenImageTransformer2DModel",
            config={"num_layers": 60},
            inputs={
                "hidden_states": Noise((1, 4096, 64)),
                "encoder_hidden_states": Noise((1, 128, 3584)),
                "timestep": Fill(0.5, (1,)),
                "img_shapes": [[(1, 64, 64)]],
            },
            blocks={"transformer_blocks": "num_layers"},
        ),
        ModelCase(
            name="flux2-dev",
            title="FLUX.2-dev, 1024², batch 1",
            transformer="Flux2Transformer2DModel",
            config={"num_layers": 8, "num_single_layers": 48},
            inputs={
                "hidden_states": Noise((1, 4096, 128)),
                "encoder_hidden_states": Noise((1, 512, 15360)),
                "timestep": Fill(0.5, (1,)),
                "guidance": Fill(4.0, (1,)),
                "img_ids": Noise((4096, 4)),
                "txt_ids": Fill(0, (512, 4)),
            },
            blocks={
                "transformer_blocks": "num_layers",
                "single_transformer_blocks": "num_single_layers",
            },
        ),
        ModelCase(
            name="ltx-2b",
            title="LTX-Video-2B, 121 × 512 × 768, CFG batch 2",
            transformer="LTXVideoTransformer3DModel",
            config={"num_layers": 28},
            inputs={
                "hidden_states": Noise((2, 16 * 16 * 24, 128)),
                "encoder_hidden_states": Noise((2, 128, 4096)),
                "encoder_attention_mask": Valid((1, 60), 128),
                "timestep": Fill(500, (2,), torch.int64),
                "num_frames": 16,
                "height": 16,
                "width": 24,
                "rope_interpolation_scale": (8 / 25, 32, 32),
            },
            blocks={"transformer_blocks": "num_layers"},
        ),
        ModelCase(
            name="hunyuan-video",
            title="HunyuanVideo, 129 × 544 × 960, batch 1",
            transformer="HunyuanVideoTransformer3DModel",
            config={"num_layers": 20, "num_single_layers": 40},
            inputs={
                "hidden_states": Noise((1, 16, 33, 68, 120)),
                "encoder_hidden_states": Noise((1, 256, 4096)),
                "encoder_attention_mask": Valid((60,), 256),
                "pooled_projections": Noise((1, 768)),
                "timestep": Fill(500, (1,), torch.int64),
                "guidance": Fill(6000, (1,)),
            },
            blocks={
                "transformer_blocks": "num_layers",
                "single_transformer_blocks": "num_single_layers",
            },
        ),
    )
}


def models_named(names: tuple[str, ...] | list[str]) -> list[ModelCase]:
    """The models called so, all when none is named; InputError says which there are."""
    if unknown := [name for name in names if name not in MODELS]:
        raise InputError(f"No model {unknown[0]!r}; give one of {', '.join(MODELS)}.")
    return [MODELS[name] for name in names or MODELS]


def make_inputs(case: ModelCase, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of one call, the same at every time on one device."""
    generator = torch.Generator(device).manual_seed(0)

    def made(value: Any) -> Any:
        if isinstance(value, Noise):
            return torch.randn(value.shape, generator=generator, device=device, dtype=dtype)
        if isinstance(value, Fill):
            return torch.full(value.shape, value.value, device=device, dtype=value.dtype)
        if isinstance(value, Valid):
            return _mask(value).to(device)
        return value

    return {name: made(value) for name, value in case.inputs.items()} | {"return_dict": False}


def _mask(valid: Valid) -> Tensor:
    counts = torch.tensor(valid.counts)
    return (torch.arange(valid.length) < counts[:, None]).to(torch.int64)
