"""What viditq has to know about a family of diffusion transformers: facts, no code per family.

An adapter names the class, the lists of blocks, the role of every linear layer in a block, and
which layers read the same tensor. Everything that is not named stays float: embedders, modulation,
norms and the final layer are below one per cent of the work and carry the signal of the timestep
(ViDiT-Q, arXiv 2406.02540, section 4.1).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any

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
        transformer: class name.
        kind: what the pipelines make, ``image`` or ``video``.
        roles: for each list of blocks (attribute of the transformer), the role of each linear
            layer, by its name within the block, in forward order.
        shared_inputs: names within a block of layers that read the same tensor.
        token_masks: role of layers whose input is padded -> the transformer's argument, (B, S),
            that says which tokens are valid.
        interleaved: the lists run one block of each in turn, not one list after the other.
        module: where the class is, for those that diffusers does not have.
    """

    name: str
    transformer: str
    kind: str
    roles: Mapping[str, Mapping[str, str]]
    shared_inputs: tuple[tuple[str, ...], ...]
    token_masks: Mapping[str, str] = field(default_factory=dict)
    interleaved: bool = False
    module: str = "diffusers"

    @property
    def transformer_class(self) -> Any:
        """The class itself; its module is imported for it, which takes seconds."""
        return getattr(import_module(self.module), self.transformer)

    @cached_property
    def _first(self) -> dict[str, str]:
        return {name: group[0] for group in self.shared_inputs for name in group}

    def layers(self, transformer: nn.Module) -> dict[str, LayerInfo]:
        """Every linear layer that may be quantized, by qualified name, in forward order."""
        found: dict[str, LayerInfo] = {}
        for blocks, index in self._blocks(transformer):
            prefix = f"{blocks}.{index}"
            modules = dict(getattr(transformer, blocks)[index].named_modules())
            for local, role in self.roles[blocks].items():
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
        return found

    def _blocks(self, transformer: nn.Module) -> list[tuple[str, int]]:
        """(list, index) of every block, in forward order."""
        found: list[tuple[str, int]] = []
        for blocks in self.roles:
            block_list = getattr(transformer, blocks, None)
            if not isinstance(block_list, nn.ModuleList):
                raise PipelineError(
                    f"{type(transformer).__name__} has no list {blocks!r}, which the adapter "
                    f"{self.name!r} expects."
                )
            found += [(blocks, index) for index in range(len(block_list))]
        return sorted(found, key=lambda block: block[1]) if self.interleaved else found
