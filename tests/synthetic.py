"""Layer inputs drawn by lot, and their exact statistics, for tests that need no model."""

import torch

from viditq.stats import LayerStats


def statistics(rows: torch.Tensor) -> LayerStats:
    """Exactly those of ``rows``, as if they came from two steps."""
    half = len(rows) // 2
    return LayerStats(
        step_amax=torch.stack([rows[:half].abs().amax(0), rows[half:].abs().amax(0)]),
        mean=rows.mean(0),
        second_moment=rows.T @ rows / len(rows),
        rows=rows,
        row_steps=torch.tensor([0] * half + [9] * (len(rows) - half)),
        count=torch.tensor([len(rows)]),
    )


def tokens(k: int, rows: int = 200) -> torch.Tensor:
    """Channels of unequal size and offset, mixed, with one outlier channel."""
    x = torch.randn(rows, k) @ torch.randn(k, k) / k**0.5 * torch.rand(k) + torch.randn(k)
    x[:, 0] *= 20
    return x
