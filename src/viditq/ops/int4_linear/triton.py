"""``int4_linear`` on CUDA: unpack the weight once, then the int8 product of this chip.

A result needs each weight in every tile of 128 rows of ``x``; unpacking inside the product repeats
that work M/128 times on its critical path. Unpacked beforehand it is N·K·1.5 bytes of traffic, a
few percent of a product with thousands of rows, and most of it stays in L2. The int8 codes live as
long as the call: what is kept in memory is 4 bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from viditq.ops.int8_linear import int8_linear as product
from viditq.ops.launch import launch

__all__ = ["int4_linear", "unpack_kernel"]

BYTES = 4096


@triton.jit
def unpack_kernel(packed, codes, total, BYTES: tl.constexpr):
    """``total`` bytes of two codes each, the even column in the low nibble."""
    at = tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES)
    pair = tl.load(packed + at, mask=at < total, other=0)
    low = (pair << 4).to(tl.int8, bitcast=True) >> 4
    high = pair.to(tl.int8, bitcast=True) >> 4
    both = tl.interleave(low, high)
    at = tl.program_id(0).to(tl.int64) * 2 * BYTES + tl.arange(0, 2 * BYTES)
    tl.store(codes + at, both, mask=at < 2 * total)


def int4_linear(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Shapes as in :func:`viditq.ops.int4_linear` -> (M, N) ``dtype``."""
    features = x.shape[1]
    codes = torch.empty(len(weight), 2 * weight.shape[1], dtype=torch.int8, device=x.device)
    total = weight.numel()
    if total:
        programs = triton.cdiv(total, BYTES)
        launch(unpack_kernel, programs, (weight.contiguous(), codes), (total,), (BYTES,), {})
    # An odd number of features leaves a column of padding.
    codes = codes[:, :features].contiguous()
    return product(x, x_scale, codes, scale, bias, dtype, gate=gate, residual=residual)
