"""Full-size models that make videos, as data."""

import torch

from viditq.bench.cases import DIT_XL, Fill, ModelCase, Noise, Valid

__all__ = ["VIDEO_MODELS"]

_WAN_INPUTS = {
    "hidden_states": Noise((1, 16, 21, 60, 104)),
    "timestep": Fill(500, (1,), torch.int64),
    "encoder_hidden_states": Noise((1, 512, 4096)),
}

_STDIT = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "patch_size": 2,
    "caption_channels": 4096,
}


def _opensora_1_2(name: str, *, frames: int, height: int, width: int) -> ModelCase:
    """At one size; every 17 frames are 5 of the latent video."""
    latent_frames, rows, columns = frames // 17 * 5, height // 8, width // 8
    return ModelCase(
        name=name,
        title=f"Open-Sora 1.2, {frames} × {height} × {width}, CFG batch 2",
        transformer="STDiT3Transformer3DModel",
        config={**_STDIT, "caption_length": 300},
        inputs={
            "hidden_states": Noise((2, 4, latent_frames, rows, columns)),
            "encoder_hidden_states": Noise((2, 300, 4096)),
            "encoder_attention_mask": Valid((60, 60), 300),
            "timestep": Fill(500, (2,)),
            "fps": Fill(24, (2,)),
            "height": height,
            "width": width,
        },
        blocks={
            "transformer_blocks": "num_layers",
            "temporal_transformer_blocks": "num_layers",
        },
        pipeline="OpenSora12Pipeline",
        tokens=latent_frames * -(-rows // 2) * -(-columns // 2),
    )


VIDEO_MODELS = (
    ModelCase(
        name="latte",
        title="Latte-1, 16 × 512², CFG batch 2",
        transformer="LatteTransformer3DModel",
        config={**DIT_XL, "sample_size": 64, "video_length": 16},
        inputs={
            "hidden_states": Noise((2, 4, 16, 64, 64)),
            "encoder_hidden_states": Noise((2, 120, 4096)),
            "timestep": Fill(500, (2,), torch.int64),
        },
        blocks={
            "transformer_blocks": "num_layers",
            "temporal_transformer_blocks": "num_layers",
        },
        pipeline="LattePipeline",
        tokens=16 * 32 * 32,
        default=True,
    ),
    ModelCase(
        name="latte-class",
        title="Latte-XL/2, class (UCF-101), 16 × 256², CFG batch 2",
        transformer="LatteClassTransformer3DModel",
        config={
            "num_attention_heads": 16,
            "attention_head_dim": 72,
            "num_layers": 14,
            "in_channels": 4,
            "out_channels": 8,
            "patch_size": 2,
            "sample_size": 32,
            "video_length": 16,
            "num_classes": 101,
        },
        inputs={
            "hidden_states": Noise((2, 4, 16, 32, 32)),
            "timestep": Fill(500, (2,), torch.int64),
            "class_labels": Fill(7, (2,), torch.int64),
        },
        blocks={
            "transformer_blocks": "num_layers",
            "temporal_transformer_blocks": "num_layers",
        },
        pipeline="LatteClassPipeline",
        tokens=16 * 16 * 16,
    ),
    ModelCase(
        name="opensora-1.0",
        title="Open-Sora 1.0, 16 × 512², CFG batch 2",
        transformer="STDiTTransformer3DModel",
        config={**_STDIT, "sample_size": 64, "video_length": 16, "caption_length": 120},
        inputs={
            "hidden_states": Noise((2, 4, 16, 64, 64)),
            "encoder_hidden_states": Noise((2, 120, 4096)),
            "encoder_attention_mask": Valid((60, 60), 120),
            "timestep": Fill(500, (2,), torch.int64),
        },
        blocks={"transformer_blocks": "num_layers"},
        pipeline="OpenSoraPipeline",
        tokens=16 * 32 * 32,
    ),
    _opensora_1_2("opensora-1.2", frames=51, height=240, width=426),
    _opensora_1_2("opensora-1.2-720p", frames=102, height=720, width=1280),
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
        pipeline="CogVideoXPipeline",
        tokens=13 * 30 * 45,
        default=True,
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
        pipeline="LTXPipeline",
        tokens=16 * 16 * 24,
    ),
    ModelCase(
        name="wan-1.3b",
        title="Wan2.1-1.3B, 81 × 480 × 832, batch 1",
        transformer="WanTransformer3DModel",
        config={"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
        inputs=_WAN_INPUTS,
        blocks={"blocks": "num_layers"},
        pipeline="WanPipeline",
        tokens=21 * 30 * 52,
        default=True,
    ),
    ModelCase(
        name="wan-14b",
        title="Wan2.1-14B, or an expert of Wan2.2-T2V-A14B, 81 × 480 × 832, batch 1",
        transformer="WanTransformer3DModel",
        config={"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
        inputs=_WAN_INPUTS,
        blocks={"blocks": "num_layers"},
        pipeline="WanPipeline",
        tokens=21 * 30 * 52,
        default=True,
    ),
    ModelCase(
        name="wan2.2-5b",
        title="Wan2.2-TI2V-5B, 121 × 704 × 1280, batch 1",
        transformer="WanTransformer3DModel",
        config={
            "num_attention_heads": 24,
            "in_channels": 48,
            "out_channels": 48,
            "ffn_dim": 14336,
            "num_layers": 30,
        },
        inputs={
            "hidden_states": Noise((1, 48, 31, 44, 80)),
            # Its pipeline gives every token a time of its own, so that a frame can be given.
            "timestep": Fill(500, (1, 31 * 22 * 40), torch.int64),
            "encoder_hidden_states": Noise((1, 512, 4096)),
        },
        blocks={"blocks": "num_layers"},
        pipeline="WanPipeline",
        tokens=31 * 22 * 40,
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
        pipeline="HunyuanVideoPipeline",
        tokens=33 * 34 * 60,
    ),
)
