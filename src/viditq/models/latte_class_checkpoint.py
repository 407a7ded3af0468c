"""Published checkpoints of Latte for classes (``ucf101.pt``, ``ffs.pt`` …), read into the network.

All sizes but the number of heads follow from the shapes (:mod:`viditq.models.published` reads the
file). Without a table of classes, the network knows none. The one list of blocks, spatial and
temporal in turn, becomes two. Tables of positions are read like weights, as Latte reads them.
"""

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from viditq.errors import InputError
from viditq.models.latte import LATTE_CLASS
from viditq.models.published import check_ranks, network_from, renamed

__all__ = ["latte_class_from"]

WHAT = "Latte for classes"

NAMES = {
    "patch_embedding": "x_embedder.proj",
    "time_embedding.linear_1": "t_embedder.mlp.0",
    "time_embedding.linear_2": "t_embedder.mlp.2",
    "class_embedding": "y_embedder.embedding_table",
    "modulation": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
    "spatial_position": "pos_embed",
    "temporal_position": "temp_embed",
}
"""Modules and tensors outside the blocks: their names here, and in checkpoints."""

BLOCK_NAMES = {
    "modulation": "adaLN_modulation.1",
    "attn1.to_qkv": "attn.qkv",
    "attn1.to_out": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
"""Modules of a block, likewise."""

LISTS = ("transformer_blocks", "temporal_transformer_blocks")
"""The lists of blocks here, in the order in which their blocks take turns there."""

CLASSES = "y_embedder.embedding_table.weight"


def latte_class_from(
    tensors: Mapping[str, Tensor], where: str, *, num_attention_heads: int = 16
) -> Any:
    """The network with the weights ``tensors``, in evaluation mode.

    Raises:
        InputError: naming ``where`` the tensors are from, and the first that is wrong.
    """
    return network_from(
        WHAT,
        LATTE_CLASS,
        {**_sizes(tensors, where), "num_attention_heads": num_attention_heads},
        tensors,
        where,
        width=tensors["x_embedder.proj.weight"].shape[0],
        published=_published,
    )


def _published(name: str) -> str:
    """What checkpoints call the tensor that is called ``name`` here."""
    blocks, _, rest = name.partition(".")
    if blocks not in LISTS:
        return renamed(name, NAMES)
    index, _, local = rest.partition(".")
    turn = len(LISTS) * int(index) + LISTS.index(blocks)
    return f"blocks.{turn}.{renamed(local, BLOCK_NAMES)}"


def _sizes(tensors: Mapping[str, Tensor], where: str) -> dict[str, int]:
    """What of the configuration follows from the tensors."""
    ranks = {"x_embedder.proj.weight": 4, "pos_embed": 3, "temp_embed": 3}
    ranks |= {"final_layer.linear.bias": 1} | ({CLASSES: 2} if CLASSES in tensors else {})
    check_ranks(WHAT, tensors, ranks, where)
    _, in_channels, patch, _ = tensors["x_embedder.proj.weight"].shape
    blocks = {match[1] for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
    if not blocks or len(blocks) % len(LISTS):
        raise InputError(
            f"{where} has {len(blocks)} blocks; {WHAT} has a temporal one for each spatial one."
        )
    return {
        "num_layers": len(blocks) // len(LISTS),
        "in_channels": in_channels,
        "out_channels": tensors["final_layer.linear.bias"].shape[0] // patch**2,
        "patch_size": patch,
        "sample_size": isqrt(tensors["pos_embed"].shape[1]) * patch,
        "video_length": tensors["temp_embed"].shape[1],
        "num_classes": tensors[CLASSES].shape[0] - 1 if CLASSES in tensors else 0,
    }
