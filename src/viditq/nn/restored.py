"""``RestoredLinear``: a quantized layer that holds its weight in 16 bits again and computes so.

The weight is what the codes stand for, with rotation and smoothing undone and a low-rank branch
added: the layer makes what the quantized one would make of activations that nobody rounds, within
rounding to 16 bits. The codes are gone, so a model with such layers cannot be saved as a quantized
one; :func:`refuse_saving_` sees to it.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from viditq.errors import CheckpointError
from viditq.nn.linear import QuantLinear
from viditq.nn.simulated import SimulatedLinear
from viditq.ops import block_hadamard

__all__ = ["RestoredLinear", "refuse_restored", "refuse_saving_"]


class RestoredLinear(nn.Linear):
    """``y = x · Ŵᵀ + b`` in floats, for ``Ŵ`` that :func:`restored_weight` gives.

    Attributes:
        weight: (N, K), in the dtype that the model computes in.
        bias: (N,) likewise, or ``None``.
    """

    def __init__(self, layer: QuantLinear, dtype: torch.dtype) -> None:
        """With the weight and the bias of ``layer``, which stays as it is."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = nn.Parameter(restored_weight(layer).to(dtype), requires_grad=False)
        bias = restored_bias(layer)
        if bias is not None:
            bias = nn.Parameter(bias.to(dtype, copy=True), requires_grad=False)
        self.bias = bias

    @property
    def size_bytes(self) -> int:
        """Bytes of the weight; not the bias."""
        return self.weight.numel() * self.weight.element_size()


@torch.no_grad()
def restored_weight(layer: QuantLinear) -> Tensor:
    """(N, K) fp32 ``Ŵ = (Ŵ' + up · down) H / s``: ``x Ŵᵀ = (x / s) H (Ŵ' + up · down)ᵀ``."""
    weight = layer.dequantized()
    if isinstance(layer, SimulatedLinear) and layer.down is not None and layer.up is not None:
        weight = weight + layer.up.float() @ layer.down.float()
    weight = block_hadamard(weight, layer.hadamard)  # its own inverse
    return weight if layer.smooth is None else weight / layer.smooth


@torch.no_grad()
def restored_bias(layer: QuantLinear) -> Tensor | None:
    """(N,) ``b - c Ŵᵀ``, or ``None``: the center is in the quantized layer's bias."""
    if layer.bias is None or layer.center is None:
        return layer.bias
    return layer.bias.float() - restored_weight(layer) @ layer.center.float()


def refuse_restored(model: nn.Module) -> None:
    """:class:`CheckpointError` if layers of ``model`` have no codes any more."""
    if any(isinstance(module, RestoredLinear) for module in model.modules()):
        _refuse()


def refuse_saving_(model: nn.Module) -> None:
    """Let diffusers' ``model.save_pretrained`` refuse, too; it would write floats as codes."""
    model.save_pretrained = _refuse  # pyright: ignore[reportArgumentType]


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise CheckpointError(
        "The transformer was tuned for this device (viditq.tune_) and some of its layers have no "
        "codes any more; save it before tuning, or load it again."
    )
