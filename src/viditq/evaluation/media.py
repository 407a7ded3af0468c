"""Samples as files to look at: PNG for images, MP4 for videos.

Films are H.264 in yuv420p, which every browser plays. That format halves the colour resolution, so
small videos are first enlarged by a whole factor, each pixel to a square: colours stay where they
are, and a viewer's smoothing cannot blur them. PNG is lossless at 8 bits.
"""

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
from torch import Tensor

from viditq.errors import InputError
from viditq.files import write_atomic

__all__ = ["check_suffix", "mp4", "png", "strip", "to_bytes", "write_sample"]

FRAMES_PER_SECOND = 8
_SMALL_SIDE = 256  # videos below this are enlarged to about it


def to_bytes(sample: Tensor) -> np.ndarray:
    """Float in 0..1 of any shape → uint8 of the same shape, rounded."""
    return (sample.float().clamp(0, 1) * 255).round().byte().cpu().numpy()


def strip(video: Tensor) -> Tensor:
    """Video (T, H, W, 3) → its frames side by side (H, T·W, 3)."""
    frames, height, width, channels = video.shape
    return video.permute(1, 0, 2, 3).reshape(height, frames * width, channels)


def png(sample: Tensor) -> bytes:
    """Image (H, W, 3), or video (T, H, W, 3) as a strip of frames, as a PNG file."""
    from PIL import Image

    pixels = to_bytes(sample if sample.ndim == 3 else strip(sample))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def mp4(video: Tensor, fps: int = FRAMES_PER_SECOND) -> bytes:
    """Video (T, H, W, 3) in 0..1 as an MP4 file at ``fps`` frames/s."""
    import av

    frames = to_bytes(video)
    factor = max(1, _SMALL_SIDE // max(frames.shape[1:3]))
    frames = frames.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = (side - side % 2 for side in frames.shape[1:3])  # yuv420p needs even sides
    frames = np.ascontiguousarray(frames[:, :height, :width])

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        options = {"crf": "16", "preset": "slow", "tune": "animation"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, fps)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def check_suffix(path: Path, kind: str) -> None:
    """Raise InputError unless ``path`` is named like a file for ``image`` or ``video``."""
    wanted = {"image": ".png", "video": ".mp4"}[kind]
    if path.suffix.lower() != wanted:
        raise InputError(f"This pipeline makes {kind}s: name a {wanted} file, not {path.name}.")


def write_sample(sample: Tensor, path: Path) -> None:
    """Write an image (H, W, 3) as PNG or a video (T, H, W, 3) as MP4."""
    write_atomic(path, png(sample) if sample.ndim == 3 else mp4(sample))
