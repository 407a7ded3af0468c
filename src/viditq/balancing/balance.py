"""Static–dynamic channel balancing of one layer input: scale, then rotate.

``x' = (x / s) H`` and ``W' = (W · s) H`` leave ``x' W'ᵀ = x Wᵀ`` (ViDiT-Q, arXiv 2406.02540,
section 3.3) and are exact in fp64 before anything is quantized. Balancing cannot quantize: the
weight is rounded once, afterwards, by :mod:`viditq.convert`.
"""

from dataclasses import dataclass

from torch import Tensor

from viditq.balancing.rotation import random_signs, rotation_block
from viditq.balancing.scaling import profile_of, smooth_scale
from viditq.ops import block_hadamard

__all__ = ["Balance", "make_balance"]


@dataclass(frozen=True)
class Balance:
    """A change of basis of a layer's input, shared by all layers that read that input.

    Attributes:
        smooth: (K,) fp32 that the activation is divided by, with the signs of the rotation;
            ``None`` for no scaling and no signs.
        hadamard: block size, 0 for no rotation.
    """

    smooth: Tensor | None = None
    hadamard: int = 0

    def weight(self, weight: Tensor) -> Tensor:
        """``(W · s) H``: (N, K) -> (N, K) in fp32 (fp64 stays fp64)."""
        if self.smooth is not None:
            weight = weight * self.smooth.to(weight.dtype)
        return block_hadamard(weight, self.hadamard)

    def activation(self, x: Tensor) -> Tensor:
        """``(x / s) H``: (…, K) -> (…, K) in fp32 (fp64 stays fp64)."""
        if self.smooth is not None:
            x = x / self.smooth.to(x.dtype)
        return block_hadamard(x, self.hadamard)

    def second_moment(self, moment: Tensor) -> Tensor:
        """E[xᵀx] (K, K) of the input -> that of the balanced input."""
        return self.activation(self.activation(moment).T)


def make_balance(
    step_amax: Tensor,
    weight_amax: Tensor,
    *,
    alpha: float | None,
    hadamard: int,
    profile: str = "static",
    seed: int = 0,
) -> Balance:
    """The balance of one layer input.

    Args:
        step_amax: (T, K) largest magnitude of each input channel at each recorded step.
        weight_amax: (K,) largest magnitude of each column over the weights that read the input.
        alpha: migration strength; ``None`` for no scaling.
        hadamard: largest block of the rotation; the largest power of two up to it that divides K is
            used, and no rotation if that is below 4.
        profile: which of :mod:`viditq.balancing.scaling` to scale by.
        seed: of the rotation's signs.
    """
    features = step_amax.shape[1]
    smooth = None
    if alpha is not None:
        smooth = smooth_scale(profile_of(profile, step_amax, weight_amax), weight_amax, alpha)
    block = rotation_block(features, hadamard)
    if block:
        signs = random_signs(features, seed).to(step_amax.device)
        smooth = signs if smooth is None else smooth * signs
    return Balance(smooth, block)
