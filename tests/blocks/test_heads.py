"""Queries and keys: which norms are part of the op, and which are called before it."""

import pytest
import torch
from diffusers.models.normalization import FP32LayerNorm, RMSNorm
from torch import nn

from viditq.blocks.heads import by_pair, stream, turned

B, S, H, D = 2, 5, 3, 8


def weighted(norm):
    norm.weight.data = torch.rand_like(norm.weight) + 0.5
    if getattr(norm, "bias", None) is not None:
        norm.bias.data = torch.randn_like(norm.bias)
    return norm.requires_grad_(False)


def hooked(norm):
    norm.register_forward_hook(lambda module, args, y: 3 * y)
    return norm


class Doubled(nn.RMSNorm):
    def forward(self, x):
        return 2 * super().forward(x)


NORMS = {
    "torch": (lambda: weighted(nn.RMSNorm(D, eps=1e-5)), True),
    "diffusers": (lambda: weighted(RMSNorm(D, eps=1e-5)), True),
    "no weight": (lambda: RMSNorm(D, eps=1e-5, elementwise_affine=False), True),
    "torch's own eps": (lambda: weighted(nn.RMSNorm(D)), False),
    "bias": (lambda: weighted(RMSNorm(D, eps=1e-5, bias=True)), True),
    "mean": (lambda: weighted(nn.LayerNorm(D)), True),
    "mean, no weight": (lambda: nn.LayerNorm(D, elementwise_affine=False), True),
    "mean in fp32": (lambda: weighted(FP32LayerNorm(D)), False),
    "hook": (lambda: hooked(weighted(nn.RMSNorm(D, eps=1e-5))), False),
    "subclass": (lambda: weighted(Doubled(D, eps=1e-5)), False),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("across", [False, True])
def test_every_norm_counts(name, across):
    make, in_op = NORMS[name]
    norm = make()
    x = torch.randn(B, S, H * D)
    if across:
        # One head of D features, as wide as all of them.
        x = x[..., :D]
    given = stream(x, norm, 1 if across else H, across=across)
    assert (given.eps is not None) == in_op
    with torch.no_grad():
        wanted = norm(x if across else x.unflatten(-1, (H, D))).view(B, S, -1, D)
    torch.testing.assert_close(turned(given, across=across), wanted)


def test_a_norm_across_heads_is_not_one_of_each():
    norm, x = weighted(nn.RMSNorm(H * D, eps=1e-5)), torch.randn(B, S, H * D)
    y = turned(stream(x, norm, H, across=True), across=True)
    torch.testing.assert_close(y, norm(x).unflatten(-1, (H, D)))


def test_nothing_to_do_is_left_alone(count_ops):
    x, more = torch.randn(B, S, H * D), torch.randn(B, 2, H * D)
    y = turned(stream(x, None, H))
    assert y.data_ptr() == x.data_ptr()
    streams = stream(x, None, H), stream(more, None, H)
    assert torch.equal(turned(*streams).flatten(2), torch.cat([x, more], 1))
    assert count_ops(lambda: turned(*streams)) == {}


def test_tables_by_pair():
    numbers = torch.arange(12.0).view(3, 4)
    cos, sin = (numbers + i for i in range(2))
    doubled = cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)
    assert by_pair(None) is None
    for mine, wanted in zip(by_pair(doubled), (cos, sin), strict=True):
        assert torch.equal(mine, wanted[None, :, None])
    for mine, wanted in zip(by_pair(doubled, 1, 2), (cos, sin), strict=True):
        assert torch.equal(mine, wanted[None, 1:2, None])
