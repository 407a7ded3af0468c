"""Checkpoints as authors published them: read without running code in them, checked, and loaded.

A checkpoint is a dictionary of tensors, in a pickled file (read with ``weights_only``, so that
nothing in it can run) or in safetensors. Every tensor that the network has here must be there under
the name that it has there, with the shape that it has here, and no others.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from viditq.errors import InputError
from viditq.models import transformer_class
from viditq.models.adapter import Adapter

__all__ = ["check_ranks", "check_tensors", "network_from", "read_tensors", "renamed"]

TRAINING_STATE = ("ema", "model")
"""Where a training state has the weights; the averaged ones first."""


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
    if isinstance(content, dict):
        states = (content[key] for key in TRAINING_STATE if isinstance(content.get(key), dict))
        content = next(states, content)
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise InputError(f"{path} is no checkpoint of a network: not a dictionary of tensors.")
    return content


def renamed(name: str, names: Mapping[str, str]) -> str:
    """What ``names``, of modules and tensors here and there, makes of the tensor ``name``."""
    module, _, tensor = name.rpartition(".")
    return names.get(name) or (f"{names[module]}.{tensor}" if module in names else name)


def check_ranks(
    what: str, tensors: Mapping[str, Tensor], ranks: Mapping[str, int], where: str
) -> None:
    """The tensors that tell the sizes of ``what`` are there, with so many dimensions.

    Raises:
        InputError: naming the first one that is not, and ``where`` it should be.
    """
    for name, rank in ranks.items():
        if name not in tensors or tensors[name].ndim != rank:
            found = "has none" if name not in tensors else f"has {tensors[name].ndim}"
            raise InputError(
                f"{where} is no checkpoint of {what}, which has a tensor {name!r} of "
                f"{rank} dimensions; this one {found}."
            )


def network_from(
    what: str,
    adapter: Adapter,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    where: str,
    *,
    width: int,
    published: Callable[[str], str],
) -> Any:
    """The network with the weights ``tensors``, in evaluation mode; numbers keep their type.

    Args:
        what: the network is called.
        adapter: of its class.
        config: arguments of the class, but the size of a head.
        tensors: of the checkpoint.
        where: they are from.
        width: of the network, which its heads divide.
        published: name of a tensor here -> its name in the checkpoint.

    Raises:
        InputError: naming ``where`` the tensors are from, and the first that is wrong.
    """
    from accelerate import init_empty_weights

    heads = config["num_attention_heads"]
    if heads < 1 or width % heads:
        raise InputError(f"{where} has a width of {width}, which {heads} heads do not divide.")
    with init_empty_weights():
        model = transformer_class(adapter.transformer)(attention_head_dim=width // heads, **config)
    expected = {published(name): (name, t) for name, t in model.state_dict().items()}
    check_tensors(what, tensors, {name: t.shape for name, (_, t) in expected.items()}, where)
    weights = {ours: tensors[name] for name, (ours, _) in expected.items()}
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(False).eval()


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
