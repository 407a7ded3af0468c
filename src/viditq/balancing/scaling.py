"""Per-channel smoothing: move the difficulty of a channel from the activation to the weight.

``s_j = max|X_j|^α / max|W_j|^(1-α)`` (SmoothQuant, arXiv 2211.10438, Eq. 4), with the activation
read as ``x / s`` and the weight stored as ``W · s``. The activation's part is a *profile* of the
channels' magnitudes over the timesteps:

- ``static`` (ViDiT-Q, arXiv 2406.02540, section 3.3): what is constant over the timesteps, see
  :func:`static_profile`; what changes with them is left to the rotation.
- ``max`` (SmoothQuant): the largest value anywhere.
- ``salience`` (PTQ4DiT, arXiv 2405.16005, Eqs. 9 and 10): the mean over the timesteps, those
  counting more in which activation and weight are large in different channels, see
  :func:`salience_profile`.
- ``rms`` (ours): the root mean square over all tokens, about the center if there is one, and
  ``s_j = rms(X_j)^α / rms(W_j)^(1-α)`` with the weight's root mean square as well. A rotation gives
  noise of a power in proportion to the vector's to every channel alike, so what a layer's output
  has of it goes with ``Σ x_j²/s_j² · Σ w_j² s_j²``, of activations and of weights: by the
  inequality of Cauchy and Schwarz α = 0.5 makes it smallest.
"""

import torch
from torch import Tensor

__all__ = ["salience_profile", "smooth_scale", "static_profile"]

MOST = 256.0
"""A channel that calibration saw near zero must not dominate a token when it is not."""


def static_profile(step_amax: Tensor) -> Tensor:
    """The part of the channel pattern that is constant over the timesteps.

    The mean over steps of each channel's largest magnitude, after every step is brought to the same
    overall level, so that no single step decides.

    Args:
        step_amax: (T, K) largest magnitude of each channel at each recorded step.

    Returns:
        (K,) fp32, at the overall level of the largest step.
    """
    level = step_amax.mean(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (step_amax / level).mean(0) * level.max()


def salience_profile(step_amax: Tensor, weight_amax: Tensor) -> Tensor:
    """The mean over the timesteps, weighted by ``exp(-ρ_t)``.

    ρ_t is Spearman's rank correlation between the channels' magnitudes in the activation at step t
    and in the weight: where they agree, balancing has nowhere to move the difficulty to.

    Args:
        step_amax: (T, K) largest magnitude of each channel at each recorded step.
        weight_amax: (K,) largest magnitude of each weight column.

    Returns:
        (K,) fp32.
    """
    ranks = torch.cat([step_amax, weight_amax[None]]).argsort(1).argsort(1).double()
    ranks = ranks - ranks.mean(1, keepdim=True)
    norms = ranks.norm(dim=1).clamp_min(1e-30)
    correlation = ranks[:-1] @ ranks[-1] / (norms[:-1] * norms[-1])
    return (correlation.neg().softmax(0)[:, None] * step_amax).sum(0).to(torch.float32)


def smooth_scale(activation: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """The smoothing vector.

    Args:
        activation: (K,) magnitude of each input channel.
        weight: (K,) magnitude of each weight column, over all layers that read the input.
        alpha: migration strength, 0 … 1.

    Returns:
        (K,) fp32 in [1/256, 256], around a geometric mean of 1; channels that are zero on either
        side get 1.
    """
    dead = (activation <= 0) | (weight <= 0)
    log_scale = alpha * activation.double().clamp_min(1e-30).log()
    log_scale -= (1 - alpha) * weight.double().clamp_min(1e-30).log()
    log_scale[dead] = 0.0
    if not dead.all():
        log_scale[~dead] -= log_scale[~dead].mean()
    return log_scale.exp().clamp(1 / MOST, MOST).to(torch.float32)
