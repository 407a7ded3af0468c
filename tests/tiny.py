"""Tiny random pipelines in diffusers layout, of any width, depth and caption size.

They stand for checkpoints made elsewhere: stock classes, stock saving, and of viditq nothing but
the classes that diffusers does not have.
"""

from pathlib import Path

import torch
from accelerate import cpu_offload
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FluxTransformer2DModel,
    LattePipeline,
    LatteTransformer3DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from viditq.models.latte_class import LatteClassTransformer3DModel
from viditq.models.opensora_vae import OpenSoraTemporalDecoder
from viditq.models.stdit import STDiTTransformer3DModel
from viditq.models.stdit3 import STDiT3Transformer3DModel
from viditq.pipelines.latte_class import LatteClassPipeline
from viditq.pipelines.opensora import OpenSoraPipeline
from viditq.pipelines.opensora12 import OpenSora12Pipeline, rectified_flow
from viditq.pipelines.video import iddpm

WORDS = [
    "a",
    "red",
    "blue",
    "green",
    "star",
    "circle",
    "square",
    "moving",
    "left",
    "right",
    "over",
    "small",
    "large",
]


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()  # pyright: ignore[reportAttributeAccessIssue]
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def text_encoder(width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=32, d_model=width, d_kv=8, d_ff=2 * width, num_layers=1, num_heads=2
    )
    return T5EncoderModel(config)


def autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )


def pixart(*, heads: int = 2, head_dim: int = 16, layers: int = 2, caption: int = 16):
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=4,
        out_channels=8,
        num_layers=layers,
        cross_attention_dim=heads * head_dim,
        sample_size=8,
        caption_channels=caption,
        use_additional_conditions=False,
    )
    return PixArtSigmaPipeline(
        tokenizer(),
        text_encoder(caption),
        autoencoder(),
        transformer,
        DPMSolverMultistepScheduler(),
    )


def latte(*, heads: int = 2, head_dim: int = 16, layers: int = 1, caption: int = 16):
    torch.manual_seed(0)
    transformer = LatteTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=4,
        out_channels=8,
        num_layers=layers,
        cross_attention_dim=heads * head_dim,
        attention_bias=True,
        sample_size=8,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=caption,
        video_length=2,
    )
    return LattePipeline(
        tokenizer(), text_encoder(caption), autoencoder(), transformer, DDIMScheduler()
    )


def latte_class(*, heads: int = 2, head_dim: int = 16, layers: int = 2, classes: int = 3):
    """The transformer of Latte for classes; 0: for none."""
    torch.manual_seed(0)
    return LatteClassTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        num_layers=layers,
        sample_size=8,
        video_length=2,
        num_classes=classes,
    )


def stdit(*, heads: int = 2, head_dim: int = 16, layers: int = 2, caption: int = 16):
    """The transformer of Open-Sora 1.0; captions have up to twelve tokens."""
    torch.manual_seed(0)
    return STDiTTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        num_layers=layers,
        sample_size=8,
        video_length=2,
        caption_channels=caption,
        caption_length=12,
    )


def stdit3(*, heads: int = 2, head_dim: int = 16, layers: int = 2, caption: int = 16):
    """The transformer of Open-Sora 1.2; captions have up to twelve tokens."""
    torch.manual_seed(0)
    return STDiT3Transformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        num_layers=layers,
        base_size=32,
        caption_channels=caption,
        caption_length=12,
    )


def latte_of_classes(**sizes: int):
    """The pipeline; its classes have names if they are three."""
    transformer = latte_class(**sizes)
    names = dict(enumerate(("Archery", "Basketball Dunk, Dunk", "YoYo")))
    named = transformer.num_classes == len(names)
    return LatteClassPipeline(autoencoder(), transformer, iddpm(), names if named else None)


def opensora(*, caption: int = 16, **sizes: int):
    torch.manual_seed(0)
    return OpenSoraPipeline(
        tokenizer(), text_encoder(caption), autoencoder(), stdit(caption=caption, **sizes), iddpm()
    )


def opensora12(*, caption: int = 16, **sizes: int):
    """Videos of five frames, which are two in latents."""
    torch.manual_seed(0)
    decoder = OpenSoraTemporalDecoder(
        block_out_channels=(4, 4, 8, 8), layers_per_block=1, norm_num_groups=2
    )
    return OpenSora12Pipeline(
        tokenizer(),
        text_encoder(caption),
        autoencoder(),
        decoder,
        stdit3(caption=caption, **sizes),
        rectified_flow(),
        height=16,
        width=20,
        num_frames=5,
    )


def offloaded_(pipe):
    """``pipe`` as its ``enable_sequential_cpu_offload`` makes it, which wants a GPU."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            buffers = bool(part._parameters)
            cpu_offload(part, torch.device("cpu"), offload_buffers=buffers)
    return pipe


def flux(*, heads: int = 2, head_dim: int = 16, layers: int = 2, single_layers: int = 3):
    """The transformer alone: the pipeline is none that viditq knows."""
    torch.manual_seed(0)
    return FluxTransformer2DModel(**flux_config(heads, head_dim, layers, single_layers))


def flux_config(heads: int = 2, head_dim: int = 16, layers: int = 2, single_layers: int = 3):
    return {
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "num_layers": layers,
        "num_single_layers": single_layers,
        "in_channels": 8,
        "joint_attention_dim": 24,
        "pooled_projection_dim": 12,
        "guidance_embeds": True,
        "axes_dims_rope": (4, (head_dim - 4) // 2, (head_dim - 4) // 2),
    }


def flux_inputs(dtype: torch.dtype = torch.float32):
    """Arguments of one call: nine tokens of two images, five of each caption."""
    torch.manual_seed(0)
    return {
        "hidden_states": torch.randn(2, 9, 8).to(dtype),
        "encoder_hidden_states": torch.randn(2, 5, 24).to(dtype),
        "pooled_projections": torch.randn(2, 12).to(dtype),
        "timestep": torch.tensor([0.5, 0.3]),
        "guidance": torch.tensor([3.5, 3.5]),
        "img_ids": torch.randn(9, 3),
        "txt_ids": torch.zeros(5, 3),
        "return_dict": False,
    }


def saved(pipe, folder: Path) -> Path:
    pipe.save_pretrained(folder)
    return folder
