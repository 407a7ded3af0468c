"""Benchmarks at tiny shapes: no time is asserted, so a few repetitions will do."""

import pytest

import tiny
from viditq.bench import models, timing
from viditq.bench.models import Fill, ModelCase, Noise, Valid

SMALL_DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "cross_attention_dim": 32,
    "attention_bias": True,
    "sample_size": 8,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "caption_channels": 16,
}

CASES = (
    ModelCase(
        name="small-pixart",
        title="PixArt, small",
        transformer="PixArtTransformer2DModel",
        config={**SMALL_DIT, "use_additional_conditions": False},
        inputs={
            "hidden_states": Noise((2, 4, 8, 8)),
            "encoder_hidden_states": Noise((2, 6, 16)),
            "encoder_attention_mask": Valid((1, 4), 6),
            "timestep": Fill(500, (2,), models.torch.int64),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
        blocks={"transformer_blocks": "num_layers"},
    ),
    ModelCase(
        name="small-latte",
        title="Latte, small",
        transformer="LatteTransformer3DModel",
        config={**SMALL_DIT, "video_length": 2},
        inputs={
            "hidden_states": Noise((2, 4, 2, 8, 8)),
            "encoder_hidden_states": Noise((2, 6, 16)),
            "timestep": Fill(500, (2,), models.torch.int64),
        },
        blocks={"transformer_blocks": "num_layers", "temporal_transformer_blocks": "num_layers"},
    ),
    ModelCase(
        name="small-wan",
        title="Wan, small",
        transformer="WanTransformer3DModel",
        config={
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "text_dim": 16,
            "freq_dim": 16,
            "ffn_dim": 96,
        },
        inputs={
            "hidden_states": Noise((1, 4, 2, 8, 8)),
            "encoder_hidden_states": Noise((1, 6, 16)),
            "timestep": Fill(500, (1,), models.torch.int64),
        },
        blocks={"blocks": "num_layers"},
    ),
    ModelCase(
        name="small-flux",
        title="FLUX, small",
        transformer="FluxTransformer2DModel",
        config=tiny.flux_config(),
        inputs={
            "hidden_states": Noise((1, 9, 8)),
            "encoder_hidden_states": Noise((1, 5, 24)),
            "pooled_projections": Noise((1, 12)),
            "timestep": Fill(0.5, (1,)),
            "guidance": Fill(3.5, (1,)),
            "img_ids": Noise((9, 3)),
            "txt_ids": Fill(0, (5, 3)),
        },
        blocks={
            "transformer_blocks": "num_layers",
            "single_transformer_blocks": "num_single_layers",
        },
    ),
    ModelCase(
        name="small-cogvideox",
        title="CogVideoX, small",
        transformer="CogVideoXTransformer3DModel",
        config={
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "text_embed_dim": 16,
            "time_embed_dim": 16,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "max_text_seq_length": 6,
        },
        inputs={
            "hidden_states": Noise((1, 2, 4, 8, 8)),
            "encoder_hidden_states": Noise((1, 6, 16)),
            "timestep": Fill(500, (1,), models.torch.int64),
        },
        blocks={"transformer_blocks": "num_layers"},
    ),
    ModelCase(
        name="small-autoencoder",
        title="An autoencoder, small: no transformer at all",
        transformer="AutoencoderKL",
        config={
            "block_out_channels": (8,),
            "norm_num_groups": 4,
            "mid_block_add_attention": False,
        },
        inputs={"sample": Noise((1, 3, 8, 8))},
        blocks={},
    ),
)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(timing, "MOST", 4)
    monkeypatch.setattr(timing, "WARM_S", 0.0)
    monkeypatch.setattr(timing, "COPY_BYTES", 2**20)
    monkeypatch.setattr(models, "MODELS", {case.name: case for case in CASES})
