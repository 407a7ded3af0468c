"""Samples as part of a page: small enough to inline, sharp where the pixels are the picture."""

import base64
import io

from markupsafe import Markup
from torch import Tensor
from torch.nn import functional

from viditq.evaluation.media import mp4, png, to_bytes
from viditq.report.svg import element

__all__ = ["difference", "picture", "shrink"]

_LARGEST_SIDE = 512
_GAIN = 8


def picture(sample: Tensor, description: str, class_: str = "") -> Markup:
    """``<img>`` or ``<video>`` of a sample, (H, W, 3) or (T, H, W, 3) in 0..1, as a data URL.

    Sides above 512 pixels are averaged down to half, a third, …; smaller pictures stay as they are.
    """
    sample = shrink(sample)
    height, width = sample.shape[-3:-1]
    crisp = "crisp " if max(height, width) < 192 else ""
    shared = {"width": width, "height": height, "class_": f"{crisp}{class_}".strip() or None}
    if sample.ndim == 4:
        return element(
            "video",
            "",
            src=_data_url("video/mp4", mp4(sample)),
            autoplay="",
            loop="",
            muted="",
            playsinline="",
            aria_label=description,
            **shared,
        )
    url = _data_url("image/png", png(sample)) if crisp else _data_url("image/webp", _webp(sample))
    return element("img", src=url, alt=description, **shared)


def difference(sample: Tensor, reference: Tensor) -> Tensor:
    """Eight times the difference of two samples, around mid-grey, in 0..1."""
    return (0.5 + _GAIN * (sample - reference)).clamp(0, 1)


def shrink(sample: Tensor, largest: int = _LARGEST_SIDE) -> Tensor:
    """Average over squares of whole pixels until no side is longer than ``largest``."""
    frames = sample if sample.ndim == 4 else sample[None]
    factor = -(-max(frames.shape[1:3]) // largest)
    if factor > 1:
        frames = functional.avg_pool2d(frames.permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1)
    return frames if sample.ndim == 4 else frames[0]


def _webp(image: Tensor) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(to_bytes(image)).save(buffer, "webp", quality=92)
    return buffer.getvalue()


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
