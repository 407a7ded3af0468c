"""Block Hadamard rotation of a layer's input: choice of the block and of the signs.

``H = diag(±1) · diag(Had_b, …, Had_b)/√b``. The signs break up patterns that a plain Hadamard
matrix would gather in one coefficient (a constant offset above all); they cost nothing at run time
because they ride on the smoothing vector, and they are stored with it: a checkpoint never depends
on a random generator.
"""

import torch
from torch import Tensor

__all__ = ["random_signs", "rotation_block"]


def rotation_block(features: int, block: int) -> int:
    """The largest power of two up to ``block`` that divides ``features``; 0 if that is below 4."""
    largest = min(block, features & -features)
    return largest if largest >= 4 else 0


def random_signs(features: int, seed: int) -> Tensor:
    """(``features``,) fp32 of ±1, the same for the same seed everywhere."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (features,), generator=generator).float().mul_(2).sub_(1)
