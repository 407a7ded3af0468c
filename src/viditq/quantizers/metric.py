"""What an error in a row of numbers costs, made ready for rounding the row entry by entry."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["GPTQ_BLOCK", "Metric"]

GPTQ_BLOCK = 128
"""Columns whose error is spread lazily together (GPTQ, arXiv 2210.17323, section 3.3)."""


@dataclass(frozen=True)
class Metric:
    """What an error in a row of numbers costs, ``e M eᵀ``, made ready for elimination.

    Attributes:
        order: (K,) entries in descending order of their second moment.
        moment: (K, K) fp32, damped, in that order.
        root: (K, K) fp32, upper triangular, ``M = R Rᵀ``.
    """

    order: Tensor
    moment: Tensor
    root: Tensor

    @classmethod
    def of(cls, moment: Tensor, damping: float = 0.01) -> "Metric":
        """Factorize ``moment`` (K, K); see :func:`round_gptq` for ``damping``.

        A covariance that was taken in fp32 may have negative eigenvalues, as large as the rounding
        of the mean it lost: then the damping grows until they are gone.
        """
        rising = moment.diagonal().argsort(descending=True).flip(0)
        # The factorization needs fp64; what follows is sums of a few hundred terms, and fp32 will
        # do. A lower factor of the reverse order is an upper one of the order.
        damped = moment[rising][:, rising].double()
        diagonal = damped.diagonal()
        size, share = diagonal.abs().mean() + 1e-30, 0.0
        for growth in range(12):
            diagonal += (damping * 10**growth - share) * size
            share = damping * 10**growth
            factor, failed = torch.linalg.cholesky_ex(damped)
            if not failed:
                return cls(rising.flip(0), _reversed(damped), _reversed(factor))
        raise AssertionError("the moment is not finite")

    @cached_property
    def in_place(self) -> tuple[Tensor, Tensor]:
        """With entries in the order that a row has them in: the moment and ``R``, each (K, K)
        fp32."""
        back = self.order.argsort()
        moment = self.moment[back][:, back]
        return moment, _reversed(torch.linalg.cholesky(moment.double().flip(0, 1)))

    @cached_property
    def gptq_blocks(self) -> list[tuple[Tensor, Tensor]]:
        """For each block ``b`` of columns, ``R_bb⁻¹`` (B, B) and, transposed, ``R_ab R_bb⁻¹``
        (B, A) of the columns ``a`` before it."""
        features = len(self.root)
        count = -(-features // GPTQ_BLOCK)
        missing = count * GPTQ_BLOCK - features
        root = functional.pad(self.root, (0, missing, 0, missing))
        root.diagonal()[features:] = 1.0
        columns = root.unflatten(1, (count, GPTQ_BLOCK)).transpose(0, 1)
        own = columns.unflatten(1, (count, GPTQ_BLOCK)).diagonal(dim1=0, dim2=1).movedim(-1, 0)
        identity = torch.eye(GPTQ_BLOCK, device=root.device).expand_as(own)
        inverse = torch.linalg.solve_triangular(own, identity, upper=True)
        inverse = inverse.mT.contiguous().mT  # so that a column is read in one piece
        shares, found = columns @ inverse, []
        for b, start in enumerate(range(0, features, GPTQ_BLOCK)):
            size = min(GPTQ_BLOCK, features - start)
            found.append((inverse[b, :size, :size], shares[b, :start, :size].T))
        return found

    @cached_property
    def descent_blocks(self) -> list[tuple[Tensor, Tensor]]:
        """For each block ``b`` of columns, ``M_bb`` (B, B) and ``M_cb`` (C, B) of the columns ``c``
        behind it."""
        found = []
        for start in range(0, len(self.moment), GPTQ_BLOCK):
            rest = self.moment[start:, start : start + GPTQ_BLOCK]
            own, behind = rest[:GPTQ_BLOCK], rest[GPTQ_BLOCK:]
            found.append((own.T, behind))  # the same; a column is read in one piece
        return found


def _reversed(x: Tensor) -> Tensor:
    """(K, K) fp64 -> (K, K) fp32, rows and columns from the last to the first."""
    return x.float().flip(0, 1)
