"""A sheet of samples as one PNG: prompts down, pipelines across, for a README or a slide."""

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from viditq.evaluation import Comparison, Result
from viditq.evaluation.measure import FLOAT
from viditq.evaluation.media import to_bytes
from viditq.evaluation.samples import read_sample
from viditq.report.pictures import shrink

__all__ = ["sheet"]

_CELL, _GAP, _PROMPT, _HEADER = 192, 10, 150, 46
_ROWS = 4
_BESIDE = 6  # quantized pipelines beside float; more begin a new band
_INK, _MUTED, _PAPER = (28, 30, 33), (104, 108, 115), (255, 255, 255)


def sheet(comparisons: Sequence[Comparison], rows: int = _ROWS) -> bytes:
    """The first ``rows`` prompts of each comparison as a PNG file; a video shows one frame.

    Many pipelines come in several bands below each other, each with the float samples again.
    """
    from PIL import Image

    blocks = [
        _block(comparison, comparison.results[start : start + _BESIDE], rows)
        for comparison in comparisons
        for start in range(0, len(comparison.results), _BESIDE)
    ]
    width = max(block.width for block in blocks)
    page = Image.new("RGB", (width, sum(block.height for block in blocks)), _PAPER)
    top = 0
    for block in blocks:
        page.paste(block, (0, top))
        top += block.height
    buffer = io.BytesIO()
    page.save(buffer, "png", optimize=True)
    return buffer.getvalue()


def _block(comparison: Comparison, results: Sequence[Result], rows: int):
    from PIL import Image, ImageDraw, ImageFont

    font, small = ImageFont.load_default(15), ImageFont.load_default(13)
    names = [FLOAT, *(result.name for result in results)]
    notes = ["fp32", *(f"{result.psnr_db:.1f} dB" for result in results)]
    samples = comparison.float_.samples[:rows]
    width = _PROMPT + len(names) * (_CELL + _GAP) + _GAP
    height = _HEADER + len(samples) * (_CELL + _GAP) + _GAP
    block = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(block)
    draw.text((_GAP, 12), comparison.pipeline, _INK, font)
    for column, (name, note) in enumerate(zip(names, notes, strict=True)):
        left = _PROMPT + column * (_CELL + _GAP)
        draw.text((left, 8), name, _INK, font)
        draw.text((left, 26), note, _MUTED, small)
        for place, row in enumerate(samples):
            cell = _cell(read_sample(comparison.folder / "samples" / name, row.index))
            block.paste(Image.fromarray(cell), (left, _HEADER + place * (_CELL + _GAP)))
    for place, row in enumerate(samples):
        text = "\n".join(textwrap.wrap(row.prompt, 19)[:8])
        draw.multiline_text((_GAP, _HEADER + place * (_CELL + _GAP) + 4), text, _MUTED, small)
    return block


def _cell(sample: Tensor) -> np.ndarray:
    """A square of the cell's size: small pictures in whole squares, the rest white."""
    image = sample[len(sample) // 2] if sample.ndim == 4 else sample
    pixels = to_bytes(shrink(image, _CELL))
    factor = max(1, _CELL // max(pixels.shape[:2]))
    pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    square = np.full((_CELL, _CELL, 3), 255, np.uint8)
    square[: pixels.shape[0], : pixels.shape[1]] = pixels
    return square
