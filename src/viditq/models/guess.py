"""An adapter for a transformer that has none, guessed from the names of its layers.

Blocks are what repeats: lists of modules of one class with linear layers inside. A layer's role is
read from the words of its name (``attn2.to_k`` is a key of cross-attention), that of a feed-forward
also from its shape: the first layer widens, the last one narrows. Modulation, norms, embedders,
routers, experts and LoRAs stay float, and so does what the words say nothing about.

Names do not tell which layers read the same tensor. That can only be seen in a run: given one,
layers that were handed the very same object, unchanged in between, in every block that ran, share
an input; without one each layer has its own, which costs time in calibration and nothing else.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from viditq.errors import PipelineError
from viditq.models.adapter import Adapter

__all__ = ["guess_adapter"]

_FLOAT = re.compile(
    r"\w*norm|ada|adaln|mod|modulation|embed\w*|time\w*|temb|pos|scale|shift|routers?|experts?|lora"
)
_ATTENTION = re.compile(r"\w*attn|attention")
_FEED_FORWARD = re.compile(r"ff|ffn|mlp|feed|feedforward")
_CROSS = re.compile(r"cross\w*|xattn")
_TEMPORAL = re.compile(r"temp|temporal\w*")
_QUERY = re.compile(r"q|wq|query")
_KEY_OR_VALUE = re.compile(r"w?(k|v|kv|qk|qkv)|key|value")
_OUT = re.compile(r"o|wo|out|output")
_DOWN = re.compile(r"down|out|2")
_GATE = re.compile(r"\w*gate|gating|beta")


def guess_adapter(transformer: nn.Module, run: Callable[[], Any] | None = None) -> Adapter:
    """Guess the adapter of ``transformer``; it is called ``guessed:`` and the name of its class.

    Args:
        transformer: of any class, on any device, the meta device included.
        run: calls ``transformer`` once with inputs that reach all of it. What it does not reach
            stays float, and what it shows to read one tensor shares its balance.

    Raises:
        PipelineError: nothing in it looks like a block with attention or a feed-forward.
    """
    name = type(transformer).__name__
    if hasattr(transformer, "_orig_mod"):
        raise PipelineError(f"{name} is a compiled model; quantize it first and then compile it.")
    roles = _roles(transformer)
    if not roles:
        raise PipelineError(
            f"{name} has no adapter and no list of like blocks whose linear layers are called as "
            f"those of attention or a feed-forward are; register an adapter for it."
        )
    guessed = Adapter(
        name=f"guessed:{name}",
        transformer=name,
        kind="video" if re.search("3D|Video", name) else "image",
        roles=roles,
        shared_inputs=(),
    )
    return guessed if run is None else _verified(guessed, transformer, run)


def _roles(transformer: nn.Module) -> dict[str, dict[str, str]]:
    """For each list of blocks, outermost lists first, the role of each layer by its local name."""
    found: dict[str, dict[str, str]] = {}
    for name, module in transformer.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if inside or not _is_repeated(module) or _has(_words(name), _FLOAT):
            continue
        guesses = {local: _role(name, local, linear) for local, linear in _linears(module)}
        if roles := {local: role for local, role in guesses.items() if role is not None}:
            found[name] = roles
    return found


def _is_repeated(module: nn.Module) -> TypeGuard[nn.ModuleList]:
    """Whether ``module`` is a list of blocks of one class; a fused block is called as its twin."""
    if not isinstance(module, nn.ModuleList) or None in list(module):
        return False
    return len({type(block).__name__ for block in module}) == 1


def _linears(blocks: nn.ModuleList) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers of each block that are called as layers."""
    for block in blocks:
        for local, module in block.named_modules():
            # torch's own attention reads the weight of its output projection and calls nothing.
            if (
                isinstance(module, nn.Linear)
                and type(module) is not NonDynamicallyQuantizableLinear
            ):
                yield local, module


def _role(blocks: str, local: str, linear: nn.Linear) -> str | None:
    """The role of the layer ``local`` of a block in the list ``blocks``; none if it stays float."""
    words = _words(local)
    narrows = linear.out_features < linear.in_features
    if _has(words, _FLOAT):
        return None
    if _has(words, _QUERY) or _has(words, _KEY_OR_VALUE):
        if _is_cross(words):
            return "cross_attn.q" if _has(words, _QUERY) else "cross_attn.kv"
        return f"{_self(blocks, words)}.qkv"
    if _has(words, _ATTENTION):
        if _has(words, _GATE) or not (_has(words, _OUT) or words[-1] == "proj"):
            return None
        return "cross_attn.out" if _is_cross(words) else f"{_self(blocks, words)}.out"
    if _has(words, _FEED_FORWARD):
        if narrows:
            # What narrows to a gate chooses between experts.
            return None if _has(words, _GATE) else "ffn.down"
        square = linear.out_features == linear.in_features
        return "ffn.down" if square and _has(words[-2:], _DOWN) else "ffn.up"
    if words[-2:] == ["proj", "out"]:
        # It reads attention alone, or attention and feed-forward side by side.
        return "ffn.down" if narrows else f"{_self(blocks, words)}.out"
    return None


def _self(blocks: str, words: list[str]) -> str:
    return "temporal_attn" if _has([*_words(blocks), *words], _TEMPORAL) else "self_attn"


def _is_cross(words: list[str]) -> bool:
    second = any(_ATTENTION.fullmatch(a) and b == "2" for a, b in pairwise(words))
    return second or _has(words, _CROSS)


def _words(name: str) -> list[str]:
    """``attn2.to_q`` -> attn, 2, to, q."""
    return re.findall(r"[a-z]+|\d+", name.lower())


def _has(words: list[str], pattern: re.Pattern[str]) -> bool:
    return any(pattern.fullmatch(word) for word in words)


@dataclass
class _Reads:
    """Which tensors the layers of each block were given: equal numbers within a block stand for
    the same object with the same content."""

    by_block: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    _block: str = ""
    # Kept until the next block runs, so that no other tensor takes the place of one.
    _held: list[tuple[Tensor, int]] = field(default_factory=list)

    def hook(self, block: str, local: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def see(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if arguments:
                own = self.by_block.setdefault(block, {})
                own[local] = (*own.get(local, ()), self._number(block, arguments[0]))

        return see

    def _number(self, block: str, x: Tensor) -> int:
        if block != self._block:
            self._block, self._held = block, []
        # An inference tensor counts no versions, and nothing may write to it here.
        own = 0 if x.is_inference() else x._version
        for number, (tensor, version) in enumerate(self._held):
            if tensor is x and version == own:
                return number
        self._held.append((x, own))
        return len(self._held) - 1


def _verified(guessed: Adapter, transformer: nn.Module, run: Callable[[], Any]) -> Adapter:
    """``guessed`` with the order and the shared inputs that ``run`` shows."""
    reads = _Reads()
    handles = [
        transformer.get_submodule(info.name).register_forward_pre_hook(
            reads.hook(info.block, info.name.removeprefix(f"{info.block}."))
        )
        for info in guessed.layers(transformer).values()
    ]
    try:
        # Versions of tensors are not counted in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    seen = list(dict.fromkeys(local for block in reads.by_block.values() for local in block))
    ran = {
        blocks: {local: roles[local] for local in seen if local in roles}
        for blocks, roles in guessed.roles.items()
        if any(block.rpartition(".")[0] == blocks for block in reads.by_block)
    }
    if not ran:
        raise PipelineError(f"The run reached no block of {guessed.transformer}; call all of it.")
    return Adapter(
        name=guessed.name,
        transformer=guessed.transformer,
        kind=guessed.kind,
        roles=ran,
        shared_inputs=_shared(seen, reads.by_block),
    )


def _shared(
    seen: list[str], reads: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> tuple[tuple[str, ...], ...]:
    """Groups of names that read the same in every block that has them."""
    groups: dict[str, list[str]] = {}
    for name in seen:
        own = [block for block in reads.values() if name in block]
        for first, members in groups.items():
            if all(block.get(first) == block[name] for block in own):
                members.append(name)
                break
        else:
            groups[name] = [name]
    return tuple(tuple(members) for members in groups.values() if len(members) > 1)
