"""The sheet: every pipeline a column, every prompt a row, pixels in whole squares."""

import io

import numpy as np
from PIL import Image

from viditq.evaluation.media import to_bytes
from viditq.evaluation.samples import read_sample
from viditq.report.sheet import sheet


def test_sheet(make_comparison, tmp_path):
    comparison = make_comparison(tmp_path, num=3, names=("w8a8", "w4a8"))
    page = np.asarray(Image.open(io.BytesIO(sheet([comparison]))))
    pixels = to_bytes(read_sample(tmp_path / "samples" / "float", 0))
    enlarged = pixels.repeat(3, axis=0).repeat(3, axis=1)
    assert np.array_equal(page[46 : 46 + 192, 150 : 150 + 192], enlarged)
    longer = make_comparison(tmp_path / "b", num=9, names=("w8a8", "w4a8"))
    assert Image.open(io.BytesIO(sheet([longer]))).height > page.shape[0]
