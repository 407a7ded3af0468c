"""W8A8 matrix product: the definition.

``y = (x_code · w_codeᵀ) · x_scale · scale + bias``: both scales sit outside the sum over K because
everything summed together shares them (ViDiT-Q, section 3). The integer sum is exact: a processor
that multiplies bytes (VNNI) does so, five times as fast as it multiplies fp32; elsewhere codes are
carried in fp32, where a sum over 1,024 features stays below 2²⁴, and longer sums are added in
int32. What follows a layer in a transformer block may follow in the same pass, in fp32: the gate of
its modulation and the residual, ``gate · y + residual``.
"""

from functools import cache

import torch
from torch import Tensor

__all__ = ["finish", "int8_linear", "integer_matmul"]

EXACT_FEATURES = 1024
"""128 · 127 · 1024 < 2²⁴: the longest sum of int8 products that fp32 carries exactly."""


def integer_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """(M, K) int8, (N, K) int8 -> (M, N) fp32 of the exact integer sum."""
    # With a single feature torch 2.13 takes the transposed weight for a matrix of another shape.
    if x.device.type == "cpu" and x.shape[1] > 1 and _multiplies_bytes():
        return torch._int_mm(x, weight.T).to(torch.float32)
    parts = zip(x.split(EXACT_FEATURES, 1), weight.split(EXACT_FEATURES, 1), strict=True)
    products = [a.to(torch.float32) @ b.to(torch.float32).T for a, b in parts]
    if len(products) == 1:
        return products[0]
    total = products[0].to(torch.int32)
    for product in products[1:]:
        total += product.to(torch.int32)
    return total.to(torch.float32)


@cache
def _multiplies_bytes() -> bool:
    """Without VNNI torch's product of bytes is slower than fp32, or saturates."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.12 and newer
    return bool(capabilities.get("avx512_vnni"))


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
    """Shapes as in :func:`viditq.ops.int8_linear` -> (M, N) ``dtype``."""
    total = integer_matmul(x, weight)
    return finish(total, x_scale, scale, bias, gate, residual, dtype)


def finish(
    total: Tensor,
    x_scale: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The sums (M, N) fp32 with what follows them, in fp32 -> (M, N) ``dtype``."""
    y = total * x_scale.reshape(-1, 1) * scale
    if bias is not None:
        y = y + bias.to(torch.float32)
    if gate is not None:
        y = y * gate.to(torch.float32).repeat_interleave(len(y) // max(1, len(gate)), dim=0)
    if residual is not None:
        y = y + residual.to(torch.float32)
    return y.to(dtype)
