"""The bundled judge reads rendered scenes, and accuracy counts only what captions say."""

import pytest
import torch

from viditq.errors import InputError
from viditq.zoo.evaluate import contact_sheet, judge_on_rendered, wilson
from viditq.zoo.judge import Judge, JudgeNet, accuracy
from viditq.zoo.scenes import KINDS


@pytest.fixture(scope="module")
def judge():
    return Judge.load()


@pytest.mark.parametrize(("kind", "number"), [("image", 128), ("video", 32)])
def test_reads_rendered_scenes(judge, kind, number):
    assert judge_on_rendered(judge, kind, number)["all"] >= 0.99


def test_features_are_maps_of_each_image(judge):
    maps = judge.features(torch.rand(2, 64, 64, 3))
    assert [tuple(m.shape[-2:]) for m in maps] == [(64, 64), (32, 32), (16, 16), (8, 8)]


def test_other_layouts_are_refused(judge):
    with pytest.raises(InputError, match="reads"):
        judge.read(torch.rand(2, 3, 64, 64))


def test_accuracy_counts_what_is_said():
    prompts = [
        "a red star growing over blue dots",
        "a small striped red star moving left over blue dots",
    ]
    said = {
        "shape": "star",
        "colour": "red",
        "texture": "plain",
        "pattern": "dots",
        "background": "blue",
    }
    readings = [{**said, "motion": "shrink"}, {**said, "motion": "left", "size": "small"}]
    shares = accuracy(readings, prompts)
    assert shares == {
        "shape": 1.0,
        "colour": 1.0,
        "size": 1.0,
        "texture": 0.5,
        "pattern": 1.0,
        "background": 1.0,
        "motion": 0.5,
        "all": 0.0,
    }
    with pytest.raises(InputError, match="1 samples"):
        accuracy(readings[:1], prompts)


def test_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    judge = Judge(JudgeNet(widths=(8, 8, 8, 8), frame_width=16))
    judge.net.half().float()
    judge.save(tmp_path)
    samples = torch.rand(2, 8, 64, 64, 3)
    assert Judge.load(tmp_path).read(samples) == judge.read(samples)
    (tmp_path / "config.json").write_text('{"attributes": {}}')
    with pytest.raises(InputError, match="other scenes"):
        Judge.load(tmp_path)


def test_wilson_interval():
    low, high = wilson(0.5, 100)
    assert low == pytest.approx(0.404, abs=1e-3) and high == pytest.approx(0.596, abs=1e-3)
    assert wilson(1.0, 256)[1] == pytest.approx(1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_contact_sheet(tmp_path, kind):
    from PIL import Image

    samples = torch.rand(3, 64, 64, 3) if kind == "image" else torch.rand(2, 8, 64, 64, 3)
    contact_sheet(samples, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == ((192, 64) if kind == "image" else (512, 128))
