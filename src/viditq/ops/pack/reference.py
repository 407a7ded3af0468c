"""Dense storage of signed codes narrower than a byte, row by row.

int4: the even column sits in the low nibble, the odd one in the high nibble. int6: four codes fill
three bytes, lowest bits first. A row whose length is not a multiple of the group is padded with
zeros, which unpacking cuts off again.
"""

import torch
from torch import Tensor

__all__ = ["pack_int4", "pack_int6", "unpack_int4", "unpack_int6"]


def _padded(codes: Tensor, group: int) -> Tensor:
    """(N, K) int8 -> (N, ⌈K/group⌉, group) int32, zero-padded."""
    short = -codes.shape[-1] % group
    return torch.nn.functional.pad(codes.to(torch.int32), (0, short)).unflatten(-1, (-1, group))


def pack_int4(codes: Tensor) -> Tensor:
    """(N, K) int8 codes in [-8, 7] -> (N, ⌈K/2⌉) uint8."""
    pairs = _padded(codes, 2) & 0xF
    return (pairs[..., 0] | pairs[..., 1] << 4).to(torch.uint8)


def unpack_int4(packed: Tensor, features: int) -> Tensor:
    """(N, ⌈K/2⌉) uint8 -> (N, K = ``features``) int8 codes in [-8, 7]."""
    low, high = packed & 0xF, packed >> 4
    codes = torch.stack([low, high], -1).flatten(-2)[..., :features].to(torch.int8)
    return (codes ^ 8) - 8  # sign-extend


def pack_int6(codes: Tensor) -> Tensor:
    """(N, K) int8 codes in [-32, 31] -> (N, 3·⌈K/4⌉) uint8."""
    a, b, c, d = (_padded(codes, 4) & 0x3F).unbind(-1)
    word = a | b << 6 | c << 12 | d << 18
    return torch.stack([word & 0xFF, word >> 8 & 0xFF, word >> 16], -1).flatten(-2).to(torch.uint8)


def unpack_int6(packed: Tensor, features: int) -> Tensor:
    """(N, 3·⌈K/4⌉) uint8 -> (N, K = ``features``) int8 codes in [-32, 31]."""
    low, middle, high = packed.to(torch.int32).unflatten(-1, (-1, 3)).unbind(-1)
    word = low | middle << 8 | high << 16
    codes = torch.stack([word >> shift & 0x3F for shift in (0, 6, 12, 18)], -1).flatten(-2)
    return ((codes[..., :features] ^ 32) - 32).to(torch.int8)  # sign-extend
