"""What every test shares: no network, no screen, and the marks that depend on the machine."""

import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_collection_modifyitems(config, items):
    absent = {}
    if not config.getoption("--slow"):
        absent["slow"] = "slow: run with --slow"
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        absent["browser"] = "browser: no Chromium on this machine"
    if any("gpu" in item.keywords for item in items) and not _sees_a_gpu():
        absent["gpu"] = "gpu: no CUDA device"
    for item in items:
        for mark in absent.keys() & {mark.name for mark in item.iter_markers()}:
            item.add_marker(pytest.mark.skip(reason=absent[mark]))


def _sees_a_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
