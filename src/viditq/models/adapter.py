"""What viditq has to know about a family of diffusion transformers: facts, no code per family.

An adapter names the class, the lists of blocks, the role of every linear layer in a block, and
which layers read the same tensor. Everything that is not named stays float: embedders, modulation,
norms and the final layer are below one per cent of the work and carry the signal of the timestep
(ViDiT-Q, arXiv 2406.02540, section 4.1).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

from viditq.errors import InputError, PipelineError
from viditq.plan import ROLES

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
        transformer: name of its class.
        kind: what the pipelines make, ``image`` or ``video``.
        roles: for each list of blocks (its name in the transformer), the role of each linear
            layer, by its name within the block, in forward order.
        shared_inputs: names within a block of layers that read the same tensor.
        token_masks: what has padded inputs, a role, a list of blocks, or a layer by its name within
            the block -> the transformer's argument, (B, L), that says which tokens of the caption
            are valid. A longer input has the caption at its end.
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

    def __post_init__(self) -> None:
        known = {local: role for layers in self.roles.values() for local, role in layers.items()}
        for local, role in known.items():
            if role not in ROLES:
                raise InputError(
                    f"The adapter {self.name!r} gives {local!r} the role {role!r}; roles are "
                    f"{', '.join(ROLES)}."
                )
        sharing = [local for group in self.shared_inputs for local in group]
        for local in sharing:
            if local not in known or sharing.count(local) > 1:
                raise InputError(
                    f"The adapter {self.name!r} lists {local!r} among the layers that share an "
                    f"input; each must have a role, and be in one group."
                )

        if unknown := set(self.token_masks) - {*ROLES, *self.roles, *known}:
            raise InputError(
                f"The adapter {self.name!r} has a token mask for {min(unknown)!r}; that is neither "
                f"a role nor one of its layers or lists of blocks."
            )

    @cached_property
    def _first(self) -> dict[str, str]:
        return {name: group[0] for group in self.shared_inputs for name in group}

    def layers(self, transformer: nn.Module) -> dict[str, LayerInfo]:
        """Every linear layer that may be quantized, by qualified name, in forward order."""
        found: dict[str, LayerInfo] = {}
        for blocks, index in self._blocks(transformer):
            prefix = f"{blocks}.{index}"
            modules = dict(transformer.get_submodule(prefix).named_modules())
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

    def token_mask(self, info: LayerInfo) -> str | None:
        """The transformer's argument that says which tokens ``info`` reads are valid, if any."""
        keys = (info.name.removeprefix(f"{info.block}."), info.role, info.block.rpartition(".")[0])
        return next((self.token_masks[key] for key in keys if key in self.token_masks), None)

    def _blocks(self, transformer: nn.Module) -> list[tuple[str, int]]:
        """(list, index) of every block, in forward order."""
        found: list[tuple[str, int]] = []
        for blocks in self.roles:
            try:
                block_list = transformer.get_submodule(blocks)
            except AttributeError:
                block_list = None
            if not isinstance(block_list, nn.ModuleList):
                raise PipelineError(
                    f"{type(transformer).__name__} has no list {blocks!r}, which the adapter "
                    f"{self.name!r} expects."
                )
            found += [(blocks, index) for index in range(len(block_list))]
        return sorted(found, key=lambda block: block[1]) if self.interleaved else found
