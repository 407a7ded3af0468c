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


def test_many_pipelines_come_in_bands(make_comparison, tmp_path):
    names = tuple(f"w4a8-{number}" for number in range(8))
    comparison = make_comparison(tmp_path, num=2, names=names)
    page = np.asarray(Image.open(io.BytesIO(sheet([comparison]))))
    band = 46 + 2 * 202 + 10
    assert page.shape == (2 * band, 150 + 7 * 202 + 10, 3)
    cells = [page[top + 46 : top + 46 + 192, 150 : 150 + 192] for top in (0, band)]
    assert np.array_equal(*cells)  # float stands in both
    assert (page[band:, 150 + 3 * 202 :] == 255).all()  # two are left for the second
