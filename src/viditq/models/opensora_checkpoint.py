"""Open-Sora's published checkpoints, read into the networks of this package.

A checkpoint is a dictionary of tensors, in a ``.pth`` (read with ``weights_only``, so that nothing
in it can run) or in safetensors. Its tensors get the names they have here; every one has to be
there, with the shape that the others imply, and no others. The sizes of the network follow from
the shapes. What the shapes do not tell is asked for: the number of heads, and the size of the video
with the scales of its positions, of which no trace is left: tables of positions that a checkpoint
holds are skipped, as Open-Sora skips them. Numbers keep their type.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from viditq.errors import InputError

__all__ = ["load_stdit", "read_tensors", "stdit_from"]

POSITIONS = frozenset({"pos_embed", "pos_embed_temporal"})

NAMES = {
    "patch_embedding": "x_embedder.proj",
    "adaln_single.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "adaln_single.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "adaln_single.linear": "t_block.1",
    "caption_projection.linear_1": "y_embedder.y_proj.fc1",
    "caption_projection.linear_2": "y_embedder.y_proj.fc2",
    "null_caption": "y_embedder.y_embedding",
    "scale_shift_table": "final_layer.scale_shift_table",
    "proj_out": "final_layer.linear",
}
"""Modules and tensors outside the blocks: their names here, and in checkpoints."""

BLOCK_NAMES = {
    "attn1.to_qkv": "attn.qkv",
    "attn1.to_out": "attn.proj",
    "temporal_attn.to_qkv": "attn_temp.qkv",
    "temporal_attn.to_out": "attn_temp.proj",
    "attn2.to_q": "cross_attn.q_linear",
    "attn2.to_kv": "cross_attn.kv_linear",
    "attn2.to_out": "cross_attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
"""Modules of a block, likewise."""


def load_stdit(
    path: str | Path,
    *,
    sample_size: int = 64,
    video_length: int = 16,
    num_attention_heads: int = 16,
    spatial_interpolation_scale: float = 1.0,
    temporal_interpolation_scale: float = 1.0,
) -> Any:
    """The network of Open-Sora 1.0 with the weights in ``path``, in evaluation mode.

    Arguments are those of :class:`viditq.models.stdit.STDiTTransformer3DModel`.

    Raises:
        InputError: naming the file, and the first tensor that is wrong.
    """
    return stdit_from(
        read_tensors(path),
        str(path),
        sample_size=sample_size,
        video_length=video_length,
        num_attention_heads=num_attention_heads,
        spatial_interpolation_scale=spatial_interpolation_scale,
        temporal_interpolation_scale=temporal_interpolation_scale,
    )


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name; of a training state (``{"ema": …}``), the averaged weights."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file {path}; give a checkpoint, .pth or .safetensors.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise InputError(
            f"{path} holds more than tensors, or is damaged; it is not read, because reading it "
            f"could run code."
        ) from None
    except Exception as error:  # a damaged file makes the reader raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} cannot be read as a checkpoint ({reason[:200]}).") from None
    if isinstance(content, dict) and isinstance(content.get("ema"), dict):
        content = content["ema"]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise InputError(f"{path} is no checkpoint of a network: not a dictionary of tensors.")
    return content


def stdit_from(tensors: Mapping[str, Tensor], where: str, **options: Any) -> Any:
    """The network with ``tensors``, named as in checkpoints; errors name ``where``."""
    from accelerate import init_empty_weights

    from viditq.models.stdit import STDiTTransformer3DModel

    config = {**_sizes(tensors, where), **options}
    _check_options(config, tensors["x_embedder.proj.weight"].shape[0], where)
    config["attention_head_dim"] = (
        tensors["x_embedder.proj.weight"].shape[0] // config["num_attention_heads"]
    )
    with init_empty_weights():
        model: Any = STDiTTransformer3DModel(**config)
    expected = {_published(name): (name, t.shape) for name, t in model.state_dict().items()}
    found = {name: tensor for name, tensor in tensors.items() if name not in POSITIONS}
    _check(found, {name: shape for name, (_, shape) in expected.items()}, where)
    weights = {ours: found[name] for name, (ours, _) in expected.items()}
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(False).eval()


def _published(name: str) -> str:
    """What checkpoints call the tensor that is called ``name`` here."""
    if block := re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", name):
        return f"blocks.{block[1]}.{_renamed(block[2], BLOCK_NAMES)}"
    return _renamed(name, NAMES)


def _renamed(name: str, names: Mapping[str, str]) -> str:
    module, _, tensor = name.rpartition(".")
    return names.get(name) or (f"{names[module]}.{tensor}" if module in names else name)


def _sizes(tensors: Mapping[str, Tensor], where: str) -> dict[str, int]:
    """What of the configuration follows from the tensors."""
    ranks = {"x_embedder.proj.weight": 5, "y_embedder.y_embedding": 2, "final_layer.linear.bias": 1}
    for name, rank in ranks.items():
        if name not in tensors or tensors[name].ndim != rank:
            found = "has none" if name not in tensors else f"has {tensors[name].ndim}"
            raise InputError(
                f"{where} is no checkpoint of Open-Sora 1.0, which has a tensor {name!r} of {rank} "
                f"dimensions; this one {found}."
            )
    _, in_channels, time, patch, _ = tensors["x_embedder.proj.weight"].shape
    if time != 1:
        raise InputError(f"{where} has patches of {time} frames; Open-Sora 1.0 has them of one.")
    length, channels = tensors["y_embedder.y_embedding"].shape
    blocks = {match[1] for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
    return {
        "num_layers": len(blocks),
        "in_channels": in_channels,
        "out_channels": tensors["final_layer.linear.bias"].shape[0] // patch**2,
        "patch_size": patch,
        "caption_channels": channels,
        "caption_length": length,
    }


def _check_options(config: Mapping[str, Any], width: int, where: str) -> None:
    heads, size, patch = (
        config[name] for name in ("num_attention_heads", "sample_size", "patch_size")
    )
    if heads < 1 or width % heads:
        raise InputError(f"{where} has a width of {width}, which {heads} heads do not divide.")
    if size < patch or size % patch:
        raise InputError(
            f"{where} has patches of {patch}×{patch}, of which a latent video of {size}×{size} is "
            f"not made; give another size."
        )


def _check(found: Mapping[str, Tensor], expected: Mapping[str, torch.Size], where: str) -> None:
    """Every expected tensor is there with its shape, and nothing else."""
    if missing := expected.keys() - found.keys():
        raise InputError(
            f"{where} lacks the tensor {min(missing)!r} ({len(missing)} of {len(expected)} "
            f"missing)."
        )
    if unknown := found.keys() - expected.keys():
        raise InputError(f"{where} holds {min(unknown)!r}, which Open-Sora 1.0 does not have.")
    for name, shape in expected.items():
        tensor = found[name]
        if tensor.shape != shape or not tensor.is_floating_point():
            raise InputError(
                f"{where}: {name} is {tuple(tensor.shape)} of {tensor.dtype}, expected are "
                f"{tuple(shape)} floats."
            )
