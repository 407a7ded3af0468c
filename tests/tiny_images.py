"""Tiny random pipelines of images, with a text encoder of each kind that they have."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    FluxPipeline,
    QwenImagePipeline,
    SanaPipeline,
    StableDiffusion3Pipeline,
)
from tokenizers import processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

import tiny
from tiny_transformers import FLUX2, QWEN_IMAGE, SANA, SD3

__all__ = [
    "BATCHED_BRANCHES",
    "PIPELINES",
    "SHAPES",
    "WITHOUT_GUIDANCE",
    "call_arguments",
    "saved",
    "size",
    "stock",
]

CAPTION_TOKENS = 16


def saved(name: str, folder: Path) -> Path:
    """The directory of a pipeline, which says how large its pictures are if that is chosen."""
    PIPELINES[name]().save_pretrained(folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | size(name)))
    return folder


def size(name: str) -> dict[str, int]:
    """Height and width in pixels, where they are chosen."""
    return {"height": 24, "width": 16} if name.startswith(("flux", "qwen")) else {}


def clip_tokenizer() -> PreTrainedTokenizerFast:
    """Ends a text, which is where CLIP's summary of it is read."""
    made = tiny.tokenizer()
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", made.eos_token_id)]
    )
    made.model_max_length = CAPTION_TOKENS
    return made


def clip_config(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=32,
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CAPTION_TOKENS,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )


def autoencoder(channels: int) -> AutoencoderKL:
    """Half the size in latents."""
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        shift_factor=0.1,
    )


def flux(guidance: bool = True) -> FluxPipeline:
    """FLUX.1-dev; without guidance, FLUX.1-schnell."""
    torch.manual_seed(0)
    config = tiny.flux_config(layers=1, single_layers=1) | {"guidance_embeds": guidance}
    return FluxPipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=guidance),
        autoencoder(config["in_channels"] // 4),
        CLIPTextModel(clip_config(config["pooled_projection_dim"])),
        clip_tokenizer(),
        tiny.text_encoder(config["joint_attention_dim"]),
        tiny.tokenizer(),
        diffusers.FluxTransformer2DModel(**config),
    )


def sd3(t5: bool = True) -> StableDiffusion3Pipeline:
    """SD3; without T5, its place in the captions is zeros."""
    torch.manual_seed(0)
    config = SD3 | {"joint_attention_dim": 24, "pooled_projection_dim": 2 * 12}
    return StableDiffusion3Pipeline(
        diffusers.SD3Transformer2DModel(**config),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        autoencoder(config["in_channels"]),
        CLIPTextModelWithProjection(clip_config(12)),
        clip_tokenizer(),
        CLIPTextModelWithProjection(clip_config(12)),
        clip_tokenizer(),
        tiny.text_encoder(24) if t5 else None,
        tiny.tokenizer() if t5 else None,
    )


def sana() -> SanaPipeline:
    torch.manual_seed(0)
    stages = {
        f"{part}_{name}": value
        for part in ("encoder", "decoder")
        for name, value in {
            "block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
            "block_out_channels": (8, 8, 8),
            "layers_per_block": (1, 1, 1),
            "qkv_multiscales": ((), (), (5,)),
        }.items()
    }
    vae = diffusers.AutoencoderDC(latent_channels=4, attention_head_dim=4, **stages)
    text_encoder = Gemma2Config(
        vocab_size=32,
        hidden_size=SANA["caption_channels"],
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
    )
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return SanaPipeline(
        tiny.tokenizer(),
        Gemma2Model(text_encoder),
        vae,
        diffusers.SanaTransformer2DModel(**SANA),
        scheduler,
    )


CHAT = (
    "{% for turn in messages %}{% for part in turn['content'] %}"
    "{{ part['text'] }} {% endfor %}{% endfor %}"
)
"""All texts of a conversation, one behind the other."""


def flux2() -> Flux2Pipeline:
    """Captions are what three of the text encoder's layers make, the last of them the thirtieth."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=FLUX2["in_channels"] // 4,
        layers_per_block=1,
        norm_num_groups=4,
    )
    width = 8
    language = {
        "model_type": "mistral",
        "vocab_size": 32,
        "hidden_size": width,
        "intermediate_size": 16,
        "num_hidden_layers": 30,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 4,
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": width,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 4,
        "image_size": 28,
        "patch_size": 14,
    }
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = CHAT
    return Flux2Pipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae,
        Mistral3ForConditionalGeneration(
            Mistral3Config(text_config=language, vision_config=vision)
        ),
        tokenizer,
        diffusers.Flux2Transformer2DModel(**FLUX2 | {"joint_attention_dim": 3 * width}),
    )


def qwen_image() -> QwenImagePipeline:
    torch.manual_seed(0)
    channels = QWEN_IMAGE["in_channels"] // 4
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=channels,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
    )
    width = QWEN_IMAGE["joint_attention_dim"]
    language = {
        "vocab_size": 32,
        "hidden_size": width,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [1, 1, 2],
            "rope_theta": 10000.0,
        },
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": width,
    }
    return QwenImagePipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae,
        Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=language, vision_config=vision)
        ),
        tiny.tokenizer(),
        diffusers.QwenImageTransformer2DModel(**QWEN_IMAGE),
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    "flux": flux,
    "flux, schnell": lambda: flux(guidance=False),
    "flux2": flux2,
    "qwen-image": qwen_image,
    "sd3": sd3,
    "sd3, without T5": lambda: sd3(t5=False),
    "sana": sana,
}

WITHOUT_GUIDANCE = ("flux, schnell",)
"""Those whose samples guidance does not change."""

BATCHED_BRANCHES = {"flux": False, "qwen-image": False, "sd3": True}
"""Whether both guidance branches run in one call, of some."""

IMAGE, TEXT = 64 * 64, 512
FLUX_SHAPES = {
    (IMAGE, 3 * 32, 32): 3,
    (IMAGE, 32, 32): 1,
    (TEXT, 3 * 32, 32): 3,
    (TEXT, 32, 32): 1,
    (IMAGE, 128, 32): 1,
    (IMAGE, 32, 128): 1,
    (TEXT, 128, 32): 1,
    (TEXT, 32, 128): 1,
    (IMAGE + TEXT, 3 * 32 + 128, 32): 4,
    (IMAGE + TEXT, 32, 160): 1,
}
FLUX2_SHAPES = {
    (IMAGE, 3 * 32, 32): 6,
    (IMAGE, 32, 32): 2,
    (TEXT, 3 * 32, 32): 6,
    (TEXT, 32, 32): 2,
    (IMAGE, 192, 32): 2,
    (IMAGE, 32, 96): 2,
    (TEXT, 192, 32): 2,
    (TEXT, 32, 96): 2,
    (IMAGE + TEXT, 96 + 192, 32): 2,
    (IMAGE + TEXT, 32, 32 + 96): 2,
}
SD3_SHAPES = {
    (2 * 16, 3 * 32, 32): 9,
    (2 * 16, 32, 32): 3,
    (2 * 333, 3 * 32, 32): 9,
    (2 * 333, 32, 32): 2,  # of the last block, not the layer behind the attention
    (2 * 16, 128, 32): 3,
    (2 * 16, 32, 128): 3,
    (2 * 333, 128, 32): 2,
    (2 * 333, 32, 128): 2,
}
QWEN_IMAGE_SHAPES = {
    (tokens, *shape): layers
    for tokens in (IMAGE, 128)
    for shape, layers in {(96, 32): 6, (32, 32): 2, (128, 32): 2, (32, 128): 2}.items()
}
SANA_SHAPES = {(2 * 64, 3 * 32, 32): 6, (2 * 64, 32, 32): 6, (2 * 300, 2 * 32, 32): 4}
SHAPES: dict[str, dict[tuple[int, int, int], int]] = {
    "flux": FLUX_SHAPES,
    "flux2": FLUX2_SHAPES,
    "qwen-image": QWEN_IMAGE_SHAPES,
    "sd3": SD3_SHAPES,
    "sana": SANA_SHAPES,
}
"""(M, N, K) of a call at the default size, with N of all that read one input together, and how many
layers that are."""


LEFT_OUT = {"sd3, without T5": {"text_encoder_3": None, "tokenizer_3": None}}
"""Parts that a directory does not have, as diffusers has to be told."""


def stock(name: str, folder: Path, **arguments: Any) -> Any:
    """The saved pipeline ``name``, loaded by diffusers alone."""
    pipe = DiffusionPipeline.from_pretrained(folder, **LEFT_OUT.get(name, {}), **arguments)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call_arguments(name: str, guidance: float) -> dict[str, Any]:
    """What a call of the stock pipeline needs beside prompt, steps and noise."""
    shorter = {"max_sequence_length": 256} if name == "flux, schnell" else {}
    if name == "qwen-image":
        return {"true_cfg_scale": guidance, "negative_prompt": " ", **size(name)}
    if name == "sana":
        shorter = {"height": 32, "width": 32, "use_resolution_binning": False}
    return {"guidance_scale": guidance, **shorter, **size(name)}
