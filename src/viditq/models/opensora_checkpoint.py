"""Open-Sora's published checkpoints, read into the networks of this package.

The sizes of the network follow from the shapes of the tensors (:mod:`viditq.models.published` reads
them). What the shapes do not tell is asked for: the number of heads, and for 1.0 the size of the
video with the scales of its positions; tables of positions that a checkpoint holds are skipped, as
Open-Sora skips them. Numbers keep their type.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from viditq.errors import InputError
from viditq.models.adapter import Adapter
from viditq.models.opensora import STDIT, STDIT3
from viditq.models.published import check_ranks, network_from, renamed

__all__ = ["is_stdit3", "stdit3_from", "stdit_from"]

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
            return f"{self.lists[blocks]}.{index}.{renamed(local, self.block_names)}"
        return renamed(name, self.names)


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
    config = {**_sizes(version, tensors, where), **options}
    size, patch = config.get("sample_size"), config["patch_size"]
    if size is not None and (size < patch or size % patch):
        raise InputError(
            f"{where} has patches of {patch}×{patch}, of which a latent video of {size}×{size} is "
            f"not made; give another size."
        )
    return network_from(
        version.name,
        version.adapter,
        config,
        {name: tensor for name, tensor in tensors.items() if name not in version.skipped},
        where,
        width=tensors["x_embedder.proj.weight"].shape[0],
        published=version.published,
    )


def _sizes(version: _Version, tensors: Mapping[str, Tensor], where: str) -> dict[str, int]:
    """What of the configuration follows from the tensors."""
    ranks = {"x_embedder.proj.weight": 5, "y_embedder.y_embedding": 2, "final_layer.linear.bias": 1}
    check_ranks(version.name, tensors, ranks, where)
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
