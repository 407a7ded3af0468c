"""Keeps bf16 attention gradients clean: keys without their mean.

A softmax does not see what is added to all its logits alike, so the part that a query's keys share
has, in exact arithmetic, no gradient. In bf16 that gradient is rounding noise, proportional to the
shared part; Adam scales noise up to full steps, the shared part grows, and the noise with it, until
it drowns the gradient of queries and keys. Latte's temporal attention, whose eight tokens at one
place look alike, ends there after some 4,000 steps (dev/LOG.md, 2026-11-23).

Taking the mean over tokens off the keys changes no output and removes the noise at its source. The
hook is for training alone: what is saved runs in the stock classes without it.
"""

import torch
from torch import Tensor, nn

__all__ = ["centre_keys"]


def centre_keys(model: nn.Module) -> None:
    """Let every attention of ``model`` see keys (B, tokens, C) whose mean over tokens is zero.

    Keys come from ``to_k``, or with queries and values from ``to_qkv`` or ``to_kv``. They must go
    into the softmax as they are: a norm of them would not be blind to what is taken off.
    """

    def centre(module: nn.Module, inputs: tuple, keys: Tensor) -> Tensor:  # noqa: ARG001
        return keys - keys.mean(dim=1, keepdim=True)

    def centre_last_but_one(module: nn.Module, inputs: tuple, made: Tensor) -> Tensor:
        *queries, keys, values = made.split(inputs[0].shape[-1], dim=-1)
        return torch.cat([*queries, centre(module, inputs, keys), values], dim=-1)

    for name, module in model.named_modules():
        if name.endswith(".to_k"):
            module.register_forward_hook(centre)
        elif name.endswith((".to_qkv", ".to_kv")):
            module.register_forward_hook(centre_last_but_one)
