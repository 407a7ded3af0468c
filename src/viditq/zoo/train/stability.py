"""Keeps attention logits from running away while training.

Blocks without normalised queries and keys can grow both without bound: Latte's temporal attention,
whose eight tokens at one place look alike, did so after about 4,000 steps, and the loss with it.
After every step the spectral norm of each query and key projection is held at a cap, estimated by
one power iteration a step. Nothing here waits for the device.
"""

import torch
from torch import Tensor, nn

__all__ = ["SpectralCap"]


class SpectralCap:
    """Caps the spectral norm of the ``to_q`` and ``to_k`` weights, all (N, K) alike, of a model."""

    def __init__(self, model: nn.Module, cap: float) -> None:
        self.cap = cap
        self.weights: list[Tensor] = [
            module.weight
            for name, module in model.named_modules()
            if name.endswith((".to_q", ".to_k")) and isinstance(module, nn.Linear)
        ]
        first = self.weights[0]
        self.right = torch.randn(len(self.weights), first.shape[1], 1, device=first.device)
        with torch.no_grad():
            for _ in range(20):
                self()

    @torch.no_grad()
    def __call__(self) -> None:
        stack = torch.stack(self.weights)  # (M, N, K)
        left = nn.functional.normalize(stack @ self.right, dim=1)
        image = stack.transpose(1, 2) @ left
        norm = image.norm(dim=1, keepdim=True)  # (M, 1, 1)
        self.right.copy_(image / norm)
        factors = (self.cap / norm).clamp(max=1.0).flatten()
        torch._foreach_mul_(self.weights, list(factors.unbind()))
