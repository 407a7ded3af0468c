"""``int8_linear`` on Hopper (sm_90): what its kernel takes, how it is set up, and its launch.

How it works, is in ``hopper_kernel``. Declined, and left to Triton's kernel: small K or K that is
no multiple of 16, results in fp32, few rows, and tensors that TMA cannot address.
"""

from functools import cache, lru_cache

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from viditq.ops.int8_linear.hopper_kernel import int8_linear_kernel
from viditq.ops.int8_linear.tiles import HOPPER_ROWS, share_out
from viditq.ops.launch import Address, Described, contiguous, dense, launch, multiprocessors

__all__ = ["int8_linear", "int8_linear_kernel", "layout", "schedule", "takes"]

BLOCK_M = HOPPER_ROWS
LEAST_K = 192
"""Of any schedule: one step more than the skew."""
BOX = 64
"""Rows of weight, and columns of the result, that TMA moves at a time."""
KINDS = {torch.int8: gl.int8, torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}
GROUP = 8
"""Tile rows that are walked down together before the next column of tiles."""


@cache
def layout(rows: int, columns: int, kind: gl.dtype = gl.int8) -> gl.NVMMASharedLayout:
    """How a box of (rows, columns) lies in shared memory."""
    return gl.NVMMASharedLayout.get_default_for([rows, columns], kind)  # pyright: ignore[reportReturnType]


# To make one takes as long as a launch, and the same addresses come again and again.
@lru_cache(4096)
def _descriptor(
    pointer: int, dtype: torch.dtype, shape: tuple[int, int], box: tuple[int, int]
) -> TensorDescriptor:
    """For boxes of a matrix; loads find zeros beyond the edges, stores end there."""
    base, strides = Address(pointer, dtype), [shape[1], 1]
    how = layout(*box, KINDS[dtype])
    return TensorDescriptor(base, list(shape), strides, list(box), how)


@lru_cache(4096)
def _described(
    sizes: tuple[int, int, int],
    block_k: int,
    dtype: torch.dtype,
    x: int,
    weight: int,
    out: int,
    residual: int | None,
) -> Described:
    """Of (M, N, K), the operands and the result at these addresses."""
    m, n, k = sizes
    shape, box = (m, n), (BLOCK_M, BOX)
    return Described(
        _descriptor(x, torch.int8, (m, k), (BLOCK_M, block_k)),
        _descriptor(weight, torch.int8, (n, k), (BOX, block_k)),
        _descriptor(out, dtype, shape, box),
        None if residual is None else _descriptor(residual, dtype, shape, box),
    )


def schedule(widths: tuple[int, int], residual: bool) -> tuple[int, int, int]:
    """BLOCK_K, STAGES and SKEW that fill the shared memory."""
    if widths[0] == widths[1]:
        return (64, 6, 1) if residual else (64, 7, 2)
    return (64, 8, 1) if residual else (128, 4, 1)


def takes(
    x: Tensor,
    x_scale: Tensor,  # noqa: ARG001
    weight: Tensor,
    scale: Tensor,  # noqa: ARG001
    bias: Tensor | None,  # noqa: ARG001
    gate: Tensor | None,  # noqa: ARG001
    residual: Tensor | None,
    dtype: torch.dtype,
) -> bool:
    """Whether the kernel computes these: enough features to overlap, rows that TMA can address.

    Below half a tile's rows Triton's smaller tiles waste less.
    """
    matrices = (x, weight) if residual is None else (x, weight, residual)
    return (
        dtype in (torch.bfloat16, torch.float16)
        and (residual is None or residual.dtype == dtype)
        and x.shape[1] >= LEAST_K
        and x.shape[1] % 16 == 0
        and x.shape[0] > BLOCK_M // 2
        and weight.shape[0] > 0
        and weight.shape[0] % 8 == 0
        and all(t.is_contiguous() and t.data_ptr() % 16 == 0 for t in matrices)
    )


def int8_linear(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Shapes as in :func:`viditq.ops.int8_linear` -> (M, N) ``dtype``; see :func:`takes`."""
    m, k = x.shape
    n = weight.shape[0]
    gate = None if gate is None else dense(gate)
    out = torch.empty(m, n, dtype=dtype, device=x.device)
    programs = multiprocessors(x.device)
    widths, whole, halves = share_out(m, n, programs)
    block_k, stages, skew = schedule(widths, residual is not None)
    gate_rows = m if gate is None else m // gate.shape[0]
    one_gate = gate is not None and (gate_rows == m or gate_rows % BLOCK_M == 0)
    launch(
        int8_linear_kernel,
        min(programs, max(whole, halves)),
        (x_scale.contiguous(), scale.contiguous(), contiguous(bias), gate),
        (m, n, k, gate_rows, n if gate is None else gate.stride(0), whole, halves),
        (x_scale.ndim == 0, one_gate, *widths, stages, skew, GROUP),
        {"num_warps": 8},
        described=_described(
            (m, n, k),
            block_k,
            dtype,
            x.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            None if residual is None else residual.data_ptr(),
        ),
    )
    return out
