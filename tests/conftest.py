"""What every test shares: no network, no screen, and the marks that depend on the machine."""

import os
import shutil
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
from hypothesis import settings

# The same examples on every run and machine, few enough for seconds; nothing is kept on disk.
settings.register_profile("viditq", derandomize=True, max_examples=30, deadline=None, database=None)
settings.load_profile("viditq")


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


@pytest.fixture(autouse=True)
def _same_numbers():
    """Random tensors of a test are the same whatever ran before it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
