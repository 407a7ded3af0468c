"""Block Hadamard rotation: ``x H`` with ``H = diag(Had_b, …, Had_b) / √b``.

``H`` is symmetric and orthogonal, so it is its own inverse and ``(x H)(W H)ᵀ = x Wᵀ``. A block that
divides K fits every model width (128 divides 1152, 1536, 3072, 4608, …), unlike one matrix of size
K. The product is taken in fp32, or fp64 for fp64 input: half-precision butterflies lose what the
rotation gains. Random signs are not part of the op; they ride on the smoothing vector.
"""

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["block_hadamard", "hadamard_matrix"]


@lru_cache(maxsize=32)
def _hadamard_on_cpu(block: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < block:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    return matrix / block**0.5


def hadamard_matrix(block: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The orthonormal (block, block) Sylvester–Hadamard matrix; ``block`` is a power of two."""
    if block < 1 or block & (block - 1):
        raise ValueError(f"block must be a power of two, not {block}")
    return _hadamard_on_cpu(block).to(device=device, dtype=dtype)


def block_hadamard(x: Tensor, block: int) -> Tensor:
    """Rotate the last dimension of ``x`` block by block.

    Args:
        x: (…, K), floating point.
        block: power of two that divides K; 0 or 1 returns ``x`` in the computing dtype.

    Returns:
        (…, K) in fp32, or fp64 if ``x`` is fp64.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x = x.to(dtype)
    if block <= 1:
        return x
    if x.shape[-1] % block:
        raise ValueError(f"block {block} does not divide the {x.shape[-1]} features")
    matrix = hadamard_matrix(block, device=x.device, dtype=dtype)
    return (x.unflatten(-1, (-1, block)) @ matrix).flatten(-2)
