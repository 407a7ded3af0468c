"""Tiny pipelines, float and quantized, and a judge that has learned nothing."""

import pytest
import torch

import tiny
from viditq import pipelines
from viditq.zoo.judge import Judge, JudgeNet


@pytest.fixture(scope="session")
def judge():
    torch.manual_seed(0)
    return Judge(JudgeNet())


@pytest.fixture(scope="session")
def pixart(tmp_path_factory):
    return make(tiny.pixart(), tmp_path_factory.mktemp("pixart"))


@pytest.fixture(scope="session")
def latte(tmp_path_factory):
    return make(tiny.latte(), tmp_path_factory.mktemp("latte"))


def make(pipe, folder):
    """``folder/float`` and ``folder/w8a8-naive``."""
    source = tiny.saved(pipe, folder / "float")
    pipelines.quantize(
        source, folder / "w8a8-naive", preset="w8a8-naive", prompts=["a red star"], steps=2, kept=2
    )
    return folder
