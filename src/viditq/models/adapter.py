"""What viditq has to know about a family of diffusion transformers: facts, no code per family.

An adapter names the class, the lists of blocks, the role of every linear layer in a block, and
which layers read the same tensor. Everything that is not named stays float: embedders, modulation,
norms and the final layer are below one per cent of the work and carry the signal of the timestep
(ViDiT-Q, arXiv 2406.02540, section 4.1).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from viditq.errors import PipelineError

__all__ = ["Adapter", "LayerInfo"]


@dataclass(frozen=True)
class LayerInfo:
    """One linear layer of a block.

    Attributes:
        name: qualified name in the transformer.
        role: one of :data:`viditq.plan.ROLES`.
        block: qualified name of the block.
        group: name of the first layer that reads the same input; such layers share their balance.
        in_features, out_features: K and N.
    """

    name: str
    role: str
    block: str
    group: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class Adapter:
    """One family.

    Attributes:
        name: of the family.
        transformer: class name in diffusers.
        kind: what the pipelines make, ``image`` or ``video``.
        roles: for each list of blocks (attribute of the transformer), the role of each linear
            layer, by its name within the block.
        shared_inputs: names within a block of layers that read the same tensor.
    """

    name: str
    transformer: str
    kind: str
    roles: Mapping[str, Mapping[str, str]]
    shared_inputs: tuple[tuple[str, ...], ...]

    @cached_property
    def _first(self) -> dict[str, str]:
        return {name: group[0] for group in self.shared_inputs for name in group}

    def layers(self, transformer: nn.Module) -> dict[str, LayerInfo]:
        """Every linear layer that may be quantized, by qualified name, in forward order."""
        found: dict[str, LayerInfo] = {}
        for blocks, roles in self.roles.items():
            block_list = getattr(transformer, blocks, None)
            if not isinstance(block_list, nn.ModuleList):
                raise PipelineError(
                    f"{type(transformer).__name__} has no list {blocks!r}, which the adapter "
                    f"{self.name!r} expects."
                )
            for index, block in enumerate(block_list):
                prefix = f"{blocks}.{index}"
                modules = dict(block.named_modules())
                for local, role in roles.items():
                    module = modules.get(local)
                    if isinstance(module, nn.Linear):
                        name = f"{prefix}.{local}"
                        found[name] = LayerInfo(
                            name=name,
                            role=role,
                            block=prefix,
                            group=f"{prefix}.{self._first.get(local, local)}",
                            in_features=module.in_features,
                            out_features=module.out_features,
                        )
        return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts block 10 after block 9."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"\.", name)]
