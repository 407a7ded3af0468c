"""Stored samples: precise, whole, and only reused when they were made in the same way."""

import os

import pytest
import torch

from viditq.errors import InputError, PipelineError
from viditq.evaluation.samples import (
    SampleStore,
    fingerprint_directory,
    fingerprint_package,
    read_sample,
)


@pytest.fixture
def store(tmp_path):
    return SampleStore(tmp_path / "w8a8", ("print 0", "print 1"))


@pytest.mark.parametrize("shape", [(3, 16, 24), (3, 4, 16, 24)])
def test_round_trip_is_far_below_any_difference_that_matters(store, shape):
    sample = torch.rand(shape).movedim(0, -1)  # channels last, as pipelines give: not contiguous
    store.write(0, sample)
    assert store.read(0).shape == sample.shape
    assert (store.read(0) - sample).abs().max() <= 0.5 / 65535 + 1e-7
    assert store.picture_file(0).is_file()
    assert store.has(0)
    assert not store.has(1)


def test_another_fingerprint_is_not_there(store):
    store.write(0, torch.rand(8, 8, 3))
    assert not SampleStore(store.folder, ("other", "other")).has(0)


def test_truncated_file_is_not_there(store):
    store.write(0, torch.rand(8, 8, 3))
    file = store.folder / "0000.safetensors"
    os.truncate(file, 40)
    assert not store.has(0)
    with pytest.raises(InputError, match=r"0000\.safetensors is missing or damaged"):
        read_sample(store.folder, 0)


def test_values_that_are_not_finite_are_refused(store):
    sample = torch.rand(8, 8, 3)
    sample[0, 0, 0] = float("nan")
    with pytest.raises(PipelineError, match=r"w8a8 made a sample with NaN .*sample 1"):
        store.write(1, sample)
    assert not store.folder.exists()


def test_adopt_links_only_what_fits(store, tmp_path):
    store.write(0, torch.zeros(8, 8, 3))
    store.write(1, torch.ones(8, 8, 3))
    new = SampleStore(tmp_path / "new" / "w8a8", ("print 0", "changed", "more"))
    new.adopt(store.folder)
    assert [new.has(index) for index in range(3)] == [True, False, False]
    new.write(0, torch.ones(8, 8, 3))  # must not reach through the link
    assert store.read(0).max() == 0


def test_directory_fingerprint_follows_the_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model.bin").write_bytes(b"1")
    first = fingerprint_directory(tmp_path)
    assert fingerprint_directory(tmp_path) == first
    (tmp_path / "a" / "model.bin").write_bytes(b"22")
    assert fingerprint_directory(tmp_path) != first


def test_package_fingerprint_is_stable():
    assert fingerprint_package() == fingerprint_package()
