"""Keeps bf16 attention gradients clean: keys without their mean.

A softmax does not see what is added to all its logits alike, so the part that a query's keys share
has, in exact arithmetic, no gradient. In bf16 that gradient is rounding noise, proportional to the
shared part; Adam scales noise up to full steps, the shared part grows, and the noise with it, until
it drowns the gradient of queries and keys. Latte's temporal attention, whose eight tokens at one
place look alike, ends there after some 4,000 steps (dev/LOG.md, 2026-11-23).

Taking the mean over tokens off the keys changes no output and removes the noise at its source. The
hook is for training alone: what is saved runs in the stock classes without it.
"""

from torch import Tensor, nn

__all__ = ["centre_keys"]


def centre_keys(model: nn.Module) -> None:
    """Let every ``to_k`` of ``model`` give keys (B, tokens, C) whose mean over tokens is zero."""

    def centre(module: nn.Module, inputs: tuple, keys: Tensor) -> Tensor:  # noqa: ARG001
        return keys - keys.mean(dim=1, keepdim=True)

    for name, module in model.named_modules():
        if name.endswith(".to_k"):
            module.register_forward_hook(centre)
