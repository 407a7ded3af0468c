"""What every test shares: no network, no screen, and the marks that depend on the machine."""

import functools
import os
import shutil
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Without a GPU, Triton's kernels are interpreted; it must be known before they are imported.
if not (shutil.which("nvidia-smi") or os.path.exists("/dev/nvidiactl")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

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


# Two lengths of caption, so that padding matters; three of four steps, so that one is skipped.
PROMPTS = ("a red star", "a small blue square moving left over green")
CALIBRATION = {"steps": 4, "kept": 3, "seed": 0, "guidance": 4.5}


@pytest.fixture(scope="session")
def floats(tmp_path_factory):
    """Directories of a float image and a float video pipeline, random and tiny."""
    import tiny

    folder = tmp_path_factory.mktemp("float")
    pipes = {"image": tiny.pixart(), "video": tiny.latte()}
    return {kind: tiny.saved(pipe, folder / kind) for kind, pipe in pipes.items()}


@pytest.fixture(scope="session")
def calibrations(floats, tmp_path_factory):
    """For each kind the folder that :func:`viditq.quantize` keeps its calibration in."""
    return {kind: tmp_path_factory.mktemp("calibration") / kind for kind in floats}


@pytest.fixture(scope="session")
def recorded(floats, calibrations):
    """The calibration set of each kind, by ``recorded(kind)``."""
    from viditq import pipelines

    def record(kind):
        pipe = pipelines.load(floats[kind])
        source, folder = str(floats[kind]), calibrations[kind] / "recorded"
        return pipelines.record(pipe, PROMPTS, folder, source=source, **CALIBRATION)

    return functools.cache(record)


@pytest.fixture(scope="session")
def quantized(floats, recorded, calibrations, tmp_path_factory):
    """A quantized pipeline's directory, by ``quantized(kind, preset)``; never write into it."""
    from viditq import pipelines

    def quantize(kind, preset):
        recorded(kind)
        out = tmp_path_factory.mktemp(kind) / preset
        return pipelines.quantize(
            floats[kind],
            out,
            preset=preset,
            prompts=PROMPTS,
            calibration=calibrations[kind],
            **CALIBRATION,
        )

    return functools.cache(quantize)
