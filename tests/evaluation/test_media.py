"""Files to look at decode to the samples that went in."""

import io

import av
import numpy as np
import pytest
import torch
from PIL import Image

from viditq.errors import InputError
from viditq.evaluation.media import check_suffix, mp4, png, write_sample


def scene(*shape: int) -> torch.Tensor:
    """Flat patches of colour, (…, H, W, 3)."""
    *lead, height, width, channels = shape
    torch.manual_seed(0)
    patches = torch.rand(*lead, height // 8, width // 8, channels)
    return patches.repeat_interleave(8, dim=-3).repeat_interleave(8, dim=-2)


def frames(content: bytes) -> np.ndarray:
    with av.open(io.BytesIO(content)) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(decoded)


def test_png_is_lossless_at_eight_bits():
    image = scene(16, 24, 3)
    decoded = np.asarray(Image.open(io.BytesIO(png(image))))
    assert np.array_equal(decoded, (image * 255).round().byte().numpy())


def test_png_of_a_video_is_a_strip():
    video = scene(3, 16, 24, 3)
    decoded = np.asarray(Image.open(io.BytesIO(png(video))))
    assert decoded.shape == (16, 72, 3)
    assert np.array_equal(decoded[:, 24:48], (video[1] * 255).round().byte().numpy())


@pytest.mark.parametrize(("shape", "factor"), [((8, 64, 64, 3), 4), ((2, 304, 272, 3), 1)])
def test_mp4_keeps_frames_and_colours(shape, factor):
    video = scene(*shape)
    decoded = frames(mp4(video))
    assert decoded.shape == (shape[0], shape[1] * factor, shape[2] * factor, 3)
    centres = decoded[:, 4 * factor :: 8 * factor, 4 * factor :: 8 * factor].astype(float)
    expected = 255 * video[:, 4::8, 4::8].numpy()
    assert np.abs(centres - expected).mean() < 6


def test_mp4_of_odd_sides():
    assert frames(mp4(torch.rand(2, 301, 299, 3))).shape == (2, 300, 298, 3)


def test_memory_layout_does_not_matter(tmp_path):
    image = torch.rand(3, 16, 24)
    write_sample(image.permute(1, 2, 0), tmp_path / "a.png")
    decoded = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.array_equal(decoded, (image * 255).round().byte().permute(1, 2, 0).numpy())


def test_suffix_tells_what_is_written(tmp_path):
    check_suffix(tmp_path / "a.PNG", "image")
    with pytest.raises(InputError, match=r"makes videos: name a \.mp4 file, not a\.png"):
        check_suffix(tmp_path / "a.png", "video")
