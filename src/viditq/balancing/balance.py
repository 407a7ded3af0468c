"""Static–dynamic channel balancing of one layer input: center, scale, then rotate.

``x' = ((x - c) / s) H`` and ``W' = (W · s) H`` leave ``x' W'ᵀ + c Wᵀ = x Wᵀ`` (ViDiT-Q, arXiv
2406.02540, section 3.3; the center from HadaNorm, arXiv 2506.09932, but fixed at calibration, so
that ``c Wᵀ`` is a bias) and are exact in fp64 before anything is quantized. Balancing cannot
quantize: the weight is rounded once, afterwards, by :mod:`viditq.convert`.
"""

from dataclasses import dataclass

from torch import Tensor

from viditq.balancing.rotation import random_signs, rotation_block
from viditq.balancing.scaling import smooth_scale
from viditq.ops import block_hadamard

__all__ = ["Balance", "make_balance"]


@dataclass(frozen=True)
class Balance:
    """A change of basis of a layer's input, shared by all layers that read that input.

    Attributes:
        smooth: (K,) fp32 that the activation is divided by, with the signs of the rotation;
            ``None`` for no scaling and no signs.
        hadamard: block size, 0 for no rotation.
        center: (K,) that is taken off the activation first, or ``None``.
    """

    smooth: Tensor | None = None
    hadamard: int = 0
    center: Tensor | None = None

    def weight(self, weight: Tensor) -> Tensor:
        """``(W · s) H``: (N, K) -> (N, K) in fp32 (fp64 stays fp64)."""
        if self.smooth is not None:
            weight = weight * self.smooth.to(weight.dtype)
        return block_hadamard(weight, self.hadamard)

    def activation(self, x: Tensor) -> Tensor:
        """``((x - c) / s) H``: (…, K) -> (…, K) in fp32 (fp64 stays fp64)."""
        return self.difference(x if self.center is None else x - self.center.to(x.dtype))

    def difference(self, x: Tensor) -> Tensor:
        """``(x / s) H``: what balancing makes of the difference of two activations."""
        if self.smooth is not None:
            x = x / self.smooth.to(x.dtype)
        return block_hadamard(x, self.hadamard)

    def second_moment(self, moment: Tensor) -> Tensor:
        """E[dᵀd] (K, K) of differences ``d`` of activations -> that of what balancing makes of
        them."""
        return self.difference(self.difference(moment).T)


def make_balance(
    activation: Tensor,
    weight: Tensor,
    *,
    alpha: float | None,
    hadamard: int,
    center: Tensor | None = None,
    seed: int = 0,
) -> Balance:
    """The balance of one layer input.

    Args:
        activation: (K,) magnitude of each input channel, by a profile of
            :mod:`viditq.balancing.scaling`.
        weight: (K,) magnitude of each column over the weights that read the input.
        alpha: migration strength; ``None`` for no scaling.
        hadamard: largest block of the rotation; the largest power of two up to it that divides K is
            used, and no rotation if that is below 4.
        center: (K,) that is taken off the input first.
        seed: of the rotation's signs.
    """
    features = len(activation)
    smooth = None if alpha is None else smooth_scale(activation, weight, alpha)
    block = rotation_block(features, hadamard)
    if block:
        signs = random_signs(features, seed).to(activation.device)
        smooth = signs if smooth is None else smooth * signs
    return Balance(smooth, block, center)
