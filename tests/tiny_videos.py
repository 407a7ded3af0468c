"""Tiny random video pipelines of diffusers: stock classes, stock saving, text encoders and all."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    UMT5Config,
    UMT5EncoderModel,
)

import tiny
import tiny_transformers

__all__ = ["CASES", "Case"]


@dataclass(frozen=True)
class Case:
    """A tiny pipeline.

    Attributes:
        make: the pipeline, the same at every time.
        tokens: of the calls of a full-size model that ``viditq doctor`` thinks of.
        size: of its videos.
        arguments: that upstream wants and a tiny model needs.
        packed: whether upstream draws noise before it puts it in the order of the latents.
    """

    make: Callable[[], Any]
    tokens: int
    size: dict[str, int] = field(
        default_factory=lambda: {"height": 16, "width": 16, "num_frames": 5}
    )
    arguments: dict[str, Any] = field(default_factory=dict)
    packed: bool = False

    def saved(self, folder: Path) -> Path:
        """The pipeline's directory, which says how large its videos are."""
        self.make().save_pretrained(folder)
        index = folder / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | self.size))
        return folder

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, H, W, 3)."""
        return self.size["num_frames"], self.size["height"], self.size["width"], 3


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


def cogvideox(scheduler=CogVideoXDDIMScheduler, **options):
    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 2,
        up_block_types=("CogVideoXUpBlock3D",) * 2,
        block_out_channels=(4, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=2,
        sample_height=16,
        sample_width=16,
    )
    return CogVideoXPipeline(
        tiny.tokenizer(),
        tiny.text_encoder(16),
        vae,
        CogVideoXTransformer3DModel(
            **tiny_transformers.COGVIDEOX, temporal_compression_ratio=2, **options
        ),
        scheduler(),
    )


def cogvideox15():
    """CogVideoX 1.5: patches span two frames, so three latent frames are padded to four, and
    positions are rotations."""
    return cogvideox(
        CogVideoXDPMScheduler,
        patch_size_t=2,
        patch_bias=False,
        use_rotary_positional_embeddings=True,
    )


def ltx():
    """Its autoencoder takes an eighth of each side; it is told the time, as of 0.9.1."""
    torch.manual_seed(0)
    two, three = (False, False), (False, False, False)
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True, False),
        decoder_inject_noise=three,
        downsample_type=("conv", "conv"),
        upsample_residual=two,
        upsample_factor=(1, 1),
        timestep_conditioning=True,
    )
    return LTXPipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae,
        tiny.text_encoder(16),
        tiny.tokenizer(),
        LTXVideoTransformer3DModel(**tiny_transformers.LTX),
    )


def hunyuan_video():
    torch.manual_seed(0)
    llama = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    clip = CLIPTextConfig(
        vocab_size=32,
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=12,
        eos_token_id=1,
    )
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 3,
        up_block_types=("HunyuanVideoUpBlock3D",) * 3,
        block_out_channels=(4, 4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )
    return HunyuanVideoPipeline(
        LlamaModel(llama),
        tiny.tokenizer(),
        HunyuanVideoTransformer3DModel(**tiny_transformers.HUNYUAN_VIDEO),
        vae,
        FlowMatchEulerDiscreteScheduler(shift=7.0),
        CLIPTextModel(clip),
        tiny.tokenizer(),
    )


CASES = {
    "wan": Case(wan, 21 * 30 * 52),
    "wan2.2": Case(wan22, 21 * 30 * 52),
    "wan2.2-5b": Case(lambda: wan(expand_timesteps=True), 21 * 30 * 52),
    "cogvideox": Case(cogvideox, 2 * (226 + 13 * 30 * 45), arguments={"max_sequence_length": 5}),
    "cogvideox1.5": Case(
        cogvideox15, 2 * (226 + 13 * 30 * 45), arguments={"max_sequence_length": 5}
    ),
    "ltx": Case(ltx, 2 * 21 * 16 * 22, {"height": 32, "width": 32, "num_frames": 5}, packed=True),
    "hunyuan-video": Case(hunyuan_video, 33 * 45 * 80),
}
