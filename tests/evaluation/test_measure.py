"""Rows from stored samples: what the judge reads, and the means over rows."""

import pytest
import torch

from viditq.errors import InputError
from viditq.evaluation.measure import mean_fields, measure
from viditq.evaluation.samples import SampleStore

CAPTIONS = [
    "a small red star on the left over a blue checkerboard",
    "a large green ring in the centre over grey dots",
    "something that no bundled pipeline was trained on",
]


class BrightnessJudge:
    """Reads every picture as its caption says, but the shape of dark ones as a moon."""

    def features(self, images):
        return [images.movedim(-1, 1), images.movedim(-1, 1)[:, :, ::2, ::2]]

    def read(self, samples):
        return [
            {"shape": "moon" if sample.mean() < 0.3 else "star", "colour": "red"}
            for sample in samples
        ]


@pytest.fixture
def stores(tmp_path):
    stores = {}
    for name, levels in {"float": (0.5, 0.5, 0.5), "q": (0.5, 0.2, 0.2)}.items():
        stores[name] = SampleStore(tmp_path / name, ("",) * 3)
        for index, level in enumerate(levels):
            stores[name].write(index, torch.full((16, 16, 3), level))
    return stores


def run(stores, read=True):
    return measure(stores, CAPTIONS, [0, 1, 2], BrightnessJudge(), read=read)


def test_readings(stores):
    rows = run(stores)
    assert [row.same_as_float for row in rows["q"]] == [True, False, False]
    assert rows["q"][0].correct["shape"] is True
    assert rows["q"][1].correct["shape"] is False  # a ring is neither
    assert rows["q"][2].correct is None  # the caption says nothing that can be checked
    assert rows["float"][0].same_as_float is None
    assert rows["float"][0].psnr_db is None


def test_only_what_the_caption_says_must_be_the_same(stores):
    class Moody(BrightnessJudge):
        def read(self, samples):
            [reading] = super().read(samples)
            return [{**reading, "mood": str(samples.mean())}]

    rows = measure(stores, CAPTIONS, [0, 1, 2], Moody(), read=True)
    assert [row.same_as_float for row in rows["q"]] == [True, False, False]


def test_means_and_shares(stores):
    fields = mean_fields(run(stores)["q"])
    assert fields["judge"]["same_as_float"] == pytest.approx(1 / 3)
    low, high = fields["judge"]["same_as_float_ci"]
    assert low < 1 / 3 < high
    assert fields["judge"]["shape"] == 0.5  # of the two captions that say a shape
    assert fields["psnr_db"] == pytest.approx((100 + 2 * 10.4576) / 3, abs=1e-2)
    assert "flow_difference" not in fields


def test_without_a_judge_of_these_pictures(stores):
    fields = mean_fields(run(stores, read=False)["q"])
    assert fields["judge"] is None
    assert fields["feature_distance"] >= 0


def test_other_sizes_cannot_be_compared(stores):
    stores["q"].write(1, torch.zeros(8, 8, 3))
    with pytest.raises(InputError, match=r"q makes samples of shape \(8, 8, 3\)"):
        run(stores)
