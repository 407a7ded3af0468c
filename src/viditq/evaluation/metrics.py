"""How near a sample is to the float sample of the same seed, number by number.

``psnr`` and ``ssim`` compare pixels. ``feature_distance`` compares what a small network sees, in
the manner of LPIPS: feature maps of several depths, each position scaled to unit length over the
channels, mean squared difference. The network is the shipped judge, trained on drawn shapes of
64×64 pixels; it runs at any size, but it never saw a photograph. So the number orders pipelines
within one comparison; it is *not* LPIPS, and must not be set beside published LPIPS values.

For video, ``temporal_consistency`` is the cosine similarity of the pooled deepest features of
adjacent frames (like CLIP-Temp, with the judge in CLIP's place: 1 = nothing changes), and
``flow_difference`` is how far the motion is from that of the float video, in pixels per frame
(optical flow by scikit-image's iterative Lucas–Kanade, like EvalCrafter's ΔFlow with RAFT).

A sample is an image (H, W, 3) or a video (T, H, W, 3), float32 in 0..1.
"""

from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from viditq.errors import InputError

__all__ = [
    "PSNR_CEILING_DB",
    "FeatureNetwork",
    "feature_distance",
    "flow_difference",
    "optical_flow",
    "psnr",
    "ssim",
    "temporal_consistency",
]

PSNR_CEILING_DB = 100.0  # samples are stored in steps of 1/65535: anything above is storage noise


class FeatureNetwork(Protocol):
    """Anything that gives feature maps of several depths, shallow to deep."""

    def features(self, images: Tensor) -> list[Tensor]:
        """``images`` (B, H, W, 3) in 0..1 → maps (B, C, h, w)."""
        ...


def psnr(sample: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 1; at most ``PSNR_CEILING_DB``."""
    error = (sample.double() - reference.double()).square().mean()
    return float(min(PSNR_CEILING_DB, -10 * torch.log10(error.clamp_min(1e-30))))


def ssim(sample: Tensor, reference: Tensor) -> float:
    """Structural similarity (Gaussian window, sigma 1.5) of an image, or its mean over frames.

    Raises InputError for pictures smaller than 6×6, which the window does not fit.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    sample, reference = _frames(sample), _frames(reference)
    if min(sample.shape[1:3]) < 6:
        height, width = sample.shape[1:3]
        raise InputError(f"SSIM needs pictures of 6×6 pixels or more, these have {width}×{height}.")
    value = structural_similarity_index_measure(
        sample.permute(0, 3, 1, 2), reference.permute(0, 3, 1, 2), data_range=1.0
    )
    assert isinstance(value, Tensor)
    return float(value)


@torch.no_grad()
def feature_distance(network: FeatureNetwork, sample: Tensor, reference: Tensor) -> float:
    """Mean squared distance of unit-length features, averaged over positions, depths and frames.

    0 = the network sees no difference; 2 = features at right angles everywhere; at most 4.
    """
    total = 0.0
    sample, reference = _frames(sample), _frames(reference)
    for frame, other in zip(sample, reference, strict=True):  # one at a time: bounded memory
        maps = network.features(torch.stack((frame, other)))
        distances = []
        for features in maps:
            unit = functional.normalize(features.float(), dim=1, eps=1e-6)
            distances.append(float((unit[0] - unit[1]).square().sum(dim=0).mean()))
        total += sum(distances) / len(distances)
    return total / len(sample)


@torch.no_grad()
def temporal_consistency(network: FeatureNetwork, video: Tensor) -> float:
    """Mean cosine similarity of the pooled deepest features of adjacent frames of one video."""
    pooled = torch.cat([network.features(frame[None])[-1].mean(dim=(2, 3)) for frame in video])
    return float(functional.cosine_similarity(pooled[:-1], pooled[1:]).mean())


def optical_flow(video: Tensor) -> np.ndarray:
    """Flow between adjacent frames of a video (T, H, W, 3): (T-1, 2, H, W), in pixels."""
    from skimage.registration import optical_flow_ilk

    grey = video.mean(dim=-1).numpy()  # (T, H, W)
    return np.stack([optical_flow_ilk(first, second) for first, second in pairwise(grey)])


def flow_difference(flow: np.ndarray, reference: np.ndarray) -> float:
    """Mean length of the difference of two flows (T-1, 2, H, W), in pixels per frame."""
    return float(np.linalg.norm(flow - reference, axis=1).mean())


def _frames(sample: Tensor) -> Tensor:
    return sample if sample.ndim == 4 else sample[None]
