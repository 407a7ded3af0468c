"""Open-Sora's published checkpoints, read into the networks of this package.

A checkpoint is a dictionary of tensors, in a ``.pth`` (read with ``weights_only``, so that nothing
in it can run) or in safetensors. Its tensors get the names they have here; every one has to be
there, with the shape that the others imply, and no others. The sizes of the network follow from
the shapes. What the shapes do not tell is asked for: the number of heads, and for 1.0 the size of
the video with the scales of its positions; tables of positions that a checkpoint holds are skipped,
as Open-Sora skips them. Numbers keep their type.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from viditq.errors import InputError
from viditq.models import transformer_class
from viditq.models.adapter import Adapter
from viditq.models.opensora import STDIT, STDIT3

__all__ = ["check_tensors", "is_stdit3", "read_tensors", "stdit3_from", "stdit_from"]

NAMES = {
    "patch_embedding": "x_embedder.proj",
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
    "attn2.to_q": "cross_attn.q_linear",
    "attn2.to_kv": "cross_attn.kv_linear",
    "attn2.to_out": "cross_attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
"""Modules of a block, likewise."""


@dataclass(frozen=True)
class _Version:
    """What the checkpoints of one version of Open-Sora look like.

    Attributes:
        name: of the version.
        adapter: of its network.
        names, block_names: names here -> names there, outside the blocks and within one.
        lists: likewise, of the lists of blocks.
        skipped: tensors that are there but follow from the configuration.
    """

    name: str
    adapter: Adapter
    names: Mapping[str, str]
    block_names: Mapping[str, str]
    lists: Mapping[str, str]
    skipped: frozenset[str]

    def published(self, name: str) -> str:
        """What checkpoints call the tensor that is called ``name`` here."""
        blocks, _, rest = name.partition(".")
        if blocks in self.lists:
            index, _, local = rest.partition(".")
            return f"{self.lists[blocks]}.{index}.{_renamed(local, self.block_names)}"
        return _renamed(name, self.names)


def _renamed(name: str, names: Mapping[str, str]) -> str:
    module, _, tensor = name.rpartition(".")
    return names.get(name) or (f"{names[module]}.{tensor}" if module in names else name)


V1_0 = _Version(
    name="Open-Sora 1.0",
    adapter=STDIT,
    names={
        **NAMES,
        "adaln_single.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "adaln_single.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "adaln_single.linear": "t_block.1",
    },
    block_names={
        **BLOCK_NAMES,
        "temporal_attn.to_qkv": "attn_temp.qkv",
        "temporal_attn.to_out": "attn_temp.proj",
    },
    lists={"transformer_blocks": "blocks"},
    skipped=frozenset({"pos_embed", "pos_embed_temporal"}),
)

V1_2 = _Version(
    name="Open-Sora 1.2",
    adapter=STDIT3,
    names={
        **NAMES,
        "time_embedding.linear_1": "t_embedder.mlp.0",
        "time_embedding.linear_2": "t_embedder.mlp.2",
        "fps_embedding.linear_1": "fps_embedder.mlp.0",
        "fps_embedding.linear_2": "fps_embedder.mlp.2",
        "time_modulation": "t_block.1",
    },
    block_names={
        **BLOCK_NAMES,
        "attn1.norm_q": "attn.q_norm",
        "attn1.norm_k": "attn.k_norm",
    },
    lists={
        "transformer_blocks": "spatial_blocks",
        "temporal_transformer_blocks": "temporal_blocks",
    },
    skipped=frozenset({"rope.freqs"}),
)


def is_stdit3(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a checkpoint is of Open-Sora 1.2 rather than 1.0."""
    return any(name.startswith("spatial_blocks.") for name in tensors)


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


def stdit_from(
    tensors: Mapping[str, Tensor],
    where: str,
    *,
    sample_size: int = 64,
    video_length: int = 16,
    num_attention_heads: int = 16,
    spatial_interpolation_scale: float = 1.0,
    temporal_interpolation_scale: float = 1.0,
) -> Any:
    """The network of Open-Sora 1.0 with the weights ``tensors``, in evaluation mode.

    Options are those of :class:`viditq.models.stdit.STDiTTransformer3DModel`.

    Raises:
        InputError: naming ``where`` the tensors are from, and the first that is wrong.
    """
    return _network(
        V1_0,
        tensors,
        where,
        sample_size=sample_size,
        video_length=video_length,
        num_attention_heads=num_attention_heads,
        spatial_interpolation_scale=spatial_interpolation_scale,
        temporal_interpolation_scale=temporal_interpolation_scale,
    )


def stdit3_from(
    tensors: Mapping[str, Tensor],
    where: str,
    *,
    num_attention_heads: int = 16,
    base_size: int = 512,
) -> Any:
    """The network of Open-Sora 1.2, likewise."""
    return _network(
        V1_2, tensors, where, num_attention_heads=num_attention_heads, base_size=base_size
    )


def _network(version: _Version, tensors: Mapping[str, Tensor], where: str, **options: Any) -> Any:
    from accelerate import init_empty_weights

    config = {**_sizes(version, tensors, where), **options}
    width, heads = tensors["x_embedder.proj.weight"].shape[0], config["num_attention_heads"]
    if heads < 1 or width % heads:
        raise InputError(f"{where} has a width of {width}, which {heads} heads do not divide.")
    size, patch = config.get("sample_size"), config["patch_size"]
    if size is not None and (size < patch or size % patch):
        raise InputError(
            f"{where} has patches of {patch}×{patch}, of which a latent video of {size}×{size} is "
            f"not made; give another size."
        )
    with init_empty_weights():
        model = transformer_class(version.adapter.transformer)(
            attention_head_dim=width // heads, **config
        )
    expected = {version.published(name): (name, t) for name, t in model.state_dict().items()}
    found = {name: tensor for name, tensor in tensors.items() if name not in version.skipped}
    check_tensors(version.name, found, {name: t.shape for name, (_, t) in expected.items()}, where)
    weights = {ours: found[name] for name, (ours, _) in expected.items()}
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(False).eval()


def _sizes(version: _Version, tensors: Mapping[str, Tensor], where: str) -> dict[str, int]:
    """What of the configuration follows from the tensors."""
    ranks = {"x_embedder.proj.weight": 5, "y_embedder.y_embedding": 2, "final_layer.linear.bias": 1}
    for name, rank in ranks.items():
        if name not in tensors or tensors[name].ndim != rank:
            found = "has none" if name not in tensors else f"has {tensors[name].ndim}"
            raise InputError(
                f"{where} is no checkpoint of {version.name}, which has a tensor {name!r} of "
                f"{rank} dimensions; this one {found}."
            )
    _, in_channels, time, patch, _ = tensors["x_embedder.proj.weight"].shape
    if time != 1:
        raise InputError(f"{where} has patches of {time} frames; {version.name} has them of one.")
    length, channels = tensors["y_embedder.y_embedding"].shape
    first = next(iter(version.lists.values()))
    blocks = {match[1] for name in tensors if (match := re.match(rf"{first}\.(\d+)\.", name))}
    if not blocks:
        raise InputError(f"{where} is no checkpoint of {version.name}: it has no {first!r}.")
    return {
        "num_layers": len(blocks),
        "in_channels": in_channels,
        "out_channels": tensors["final_layer.linear.bias"].shape[0] // patch**2,
        "patch_size": patch,
        "caption_channels": channels,
        "caption_length": length,
    }


def check_tensors(
    what: str,
    found: Mapping[str, Tensor],
    expected: Mapping[str, torch.Size],
    where: str,
) -> None:
    """Every tensor that ``what`` has is there with its shape, and nothing else.

    Raises:
        InputError: naming the first one that is wrong, and ``where`` it is.
    """
    if missing := expected.keys() - found.keys():
        raise InputError(
            f"{where} lacks the tensor {min(missing)!r} ({len(missing)} of {len(expected)} "
            f"missing)."
        )
    if unknown := found.keys() - expected.keys():
        raise InputError(f"{where} holds {min(unknown)!r}, which {what} does not have.")
    for name, shape in expected.items():
        tensor = found[name]
        if tensor.shape != shape or not tensor.is_floating_point():
            raise InputError(
                f"{where}: {name} is {tuple(tensor.shape)} of {tensor.dtype}, expected are "
                f"{tuple(shape)} floats."
            )
