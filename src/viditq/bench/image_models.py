"""Full-size models that make pictures, as data."""

import torch

from viditq.bench.cases import DIT_XL, Fill, ModelCase, Noise, Valid

__all__ = ["IMAGE_MODELS"]

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

IMAGE_MODELS = (
    ModelCase(
        name="pixart-alpha",
        title="PixArt-α-XL, 1024², CFG batch 2",
        transformer="PixArtTransformer2DModel",
        config={
            **DIT_XL,
            "sample_size": 128,
            "interpolation_scale": 2,
            "use_additional_conditions": True,
        },
        inputs={
            "hidden_states": Noise((2, 4, 128, 128)),
            "encoder_hidden_states": Noise((2, 120, 4096)),
            "encoder_attention_mask": Valid((1, 60), 120),
            "timestep": Fill(500, (2,), torch.int64),
            "added_cond_kwargs": {
                "resolution": Fill(1024, (2, 2)),
                "aspect_ratio": Fill(1, (2, 1)),
            },
        },
        blocks={"transformer_blocks": "num_layers"},
        pipeline="PixArtAlphaPipeline",
        tokens=4096,
    ),
    ModelCase(
        name="pixart-sigma",
        title="PixArt-Σ-XL, 1024², CFG batch 2",
        transformer="PixArtTransformer2DModel",
        config={
            **DIT_XL,
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
        pipeline="PixArtSigmaPipeline",
        tokens=4096,
        default=True,
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
        pipeline="FluxPipeline",
        tokens=4096,
        default=True,
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
        pipeline="Flux2Pipeline",
        tokens=4096,
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
        pipeline="StableDiffusion3Pipeline",
        tokens=4096,
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
        pipeline="StableDiffusion3Pipeline",
        tokens=4096,
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
        pipeline="SanaPipeline",
        tokens=1024,
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
        pipeline="QwenImagePipeline",
        tokens=4096,
    ),
)
