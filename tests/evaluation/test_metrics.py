"""Metrics against their definitions, and what they must say about known changes."""

import numpy as np
import pytest
import torch

from viditq.errors import InputError
from viditq.evaluation.metrics import (
    PSNR_CEILING_DB,
    feature_distance,
    flow_difference,
    optical_flow,
    psnr,
    ssim,
    temporal_consistency,
)
from viditq.zoo.judge import Judge, JudgeNet


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Judge(JudgeNet())


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    """Smooth noise of (…, H, W, 3), with edges that a flow can hold on to."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(1, 3, *(side // 4 for side in shape), generator=generator)
    return torch.nn.functional.interpolate(noise, shape, mode="bilinear")[0].permute(1, 2, 0)


def test_psnr_is_its_formula():
    reference = torch.full((8, 8, 3), 0.5)
    assert psnr(reference + 0.1, reference) == pytest.approx(20.0, abs=1e-4)
    assert psnr(reference, reference) == PSNR_CEILING_DB


def test_psnr_of_a_video_is_over_all_frames():
    reference = torch.zeros(4, 8, 8, 3)
    sample = reference.clone()
    sample[0] = 0.2
    assert psnr(sample, reference) == pytest.approx(-10 * np.log10(0.04 / 4), abs=1e-4)


def test_ssim_agrees_with_scikit_image():
    from skimage.metrics import structural_similarity

    reference = picture(48, 40)
    noise = torch.randn(48, 40, 3, generator=torch.Generator().manual_seed(1))
    sample = (reference + 0.05 * noise).clamp(0, 1)
    _, values = structural_similarity(
        sample.numpy(),
        reference.numpy(),
        channel_axis=2,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    # the two libraries mirror the border in different ways
    assert ssim(sample, reference) == pytest.approx(values.mean(), abs=0.003)
    assert ssim(reference, reference) == pytest.approx(1.0, abs=1e-5)


def test_ssim_of_a_video_is_the_mean_over_frames():
    reference = torch.stack([picture(16, 16, seed=seed) for seed in range(3)])
    sample = (reference + 0.1 * torch.randn(reference.shape)).clamp(0, 1)
    frames = [ssim(a, b) for a, b in zip(sample, reference, strict=True)]
    assert ssim(sample, reference) == pytest.approx(sum(frames) / 3, abs=1e-5)


def test_ssim_of_a_tiny_picture_is_refused():
    with pytest.raises(InputError, match="6×6"):
        ssim(torch.zeros(4, 5, 3), torch.zeros(4, 5, 3))


@pytest.mark.parametrize("shape", [(64, 64), (40, 88), (200, 128)])
def test_feature_distance_grows_with_the_difference(network, shape):
    reference = picture(*shape)
    noise = torch.randn(*shape, 3)
    distances = [
        feature_distance(network, (reference + level * noise).clamp(0, 1), reference)
        for level in (0.0, 0.02, 0.1)
    ]
    assert distances[0] == pytest.approx(0.0, abs=1e-6)
    assert distances[0] < distances[1] < distances[2] <= 4.0


def test_feature_distance_of_a_video_is_the_mean_over_frames(network):
    reference = torch.stack([picture(32, 32, seed=seed) for seed in range(2)])
    sample = reference.flip(0)
    one = feature_distance(network, sample[0], reference[0])
    assert feature_distance(network, sample, reference) == pytest.approx(one, rel=1e-4)


def test_temporal_consistency(network):
    still = picture(64, 64).expand(4, 64, 64, 3)
    flicker = torch.stack([picture(64, 64, seed=seed) for seed in range(4)])
    assert temporal_consistency(network, still) == pytest.approx(1.0, abs=1e-5)
    assert temporal_consistency(network, flicker) < 0.9999


def test_flow_finds_a_shift():
    frame = picture(64, 64)
    moving = torch.stack([frame.roll(step, dims=1) for step in range(3)])
    flow = optical_flow(moving)
    assert flow.shape == (2, 2, 64, 64)
    inner = flow[:, :, 12:-12, 12:-12]
    assert np.abs(inner[:, 1]).mean() == pytest.approx(1.0, abs=0.15)
    assert np.abs(inner[:, 0]).mean() < 0.15


def test_flow_difference_is_in_pixels():
    flow = np.zeros((3, 2, 8, 8))
    other = flow.copy()
    other[:, 0], other[:, 1] = 3.0, 4.0
    assert flow_difference(other, flow) == pytest.approx(5.0)
    assert flow_difference(flow, flow) == 0.0
