"""What a full-size model that is measured is made of: a configuration and one step's inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["DIT_XL", "Fill", "ModelCase", "Noise", "Valid"]


@dataclass(frozen=True)
class Noise:
    """Standard normal numbers in the model's dtype."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Fill:
    """One value everywhere."""

    value: float
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Valid:
    """(B, ``length``) mask of a padded caption: how many tokens of each are valid."""

    counts: tuple[int, ...]
    length: int


@dataclass(frozen=True)
class ModelCase:
    """One model at one size.

    Attributes:
        name: on the command line.
        title: in tables, with the size of what is made.
        transformer: class name, as :func:`viditq.models.transformer_class` knows it.
        config: its configuration, as published.
        inputs: arguments of one call; what is no recipe for a tensor is passed as it is.
        blocks: the lists of repeated blocks and the config's fields that say how long they are.
        pipeline: class name of the pipeline that it is the transformer of.
        tokens: of one sample, without its caption.
        default: measured where no model is named.
    """

    name: str
    title: str
    transformer: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Any]
    blocks: Mapping[str, str]
    pipeline: str | None = None
    tokens: int | None = None
    default: bool = False

    @property
    def num_blocks(self) -> int:
        """Blocks in all lists."""
        return sum(self.config[count] for count in self.blocks.values())

    @property
    def one_of_each(self) -> dict[str, Any]:
        """The configuration with one block in each list."""
        return {**self.config, **dict.fromkeys(self.blocks.values(), 1)}


DIT_XL: Mapping[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "cross_attention_dim": 1152,
    "attention_bias": True,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "caption_channels": 4096,
}
"""PixArt's and Latte's blocks have the sizes of DiT-XL/2."""
