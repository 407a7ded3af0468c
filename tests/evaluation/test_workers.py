"""How many processes, and what they give back."""

import errno
import importlib.util

import pytest
import torch

from checks import refuses
from viditq.errors import InputError
from viditq.evaluation import workers
from viditq.evaluation.workers import count_workers, crew
from viditq.progress import quiet


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many GPUs, with Ray or without."""

    def machine(gpus, ray):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(workers, "has_ray", lambda: ray)

    return machine


@pytest.mark.parametrize(
    ("gpus", "ray", "asked", "count"),
    [
        (4, True, {"device": "cuda"}, 4),
        (4, True, {"device": "cuda", "gpus": 3}, 3),
        (4, False, {"device": "cuda"}, 1),
        (1, False, {"device": "cuda", "gpus": 1}, 1),
        (4, True, {"device": "cuda:2"}, 1),
        (4, True, {"device": "cpu", "gpus": 4}, 1),
        (0, True, {"device": "cpu", "workers": 3}, 3),
        (0, False, {"device": "cpu", "workers": 1}, 1),
    ],
)
def test_count(machine, gpus, ray, asked, count):
    machine(gpus, ray)
    assert count_workers(**asked) == count


@pytest.mark.parametrize(
    ("gpus", "ray", "asked", "facts"),
    [
        (4, False, {"device": "cuda", "gpus": 2}, ["2 processes", "viditq[ray]"]),
        (0, False, {"device": "cpu", "workers": 2}, ["2 processes", "viditq[ray]"]),
        (2, True, {"device": "cuda", "gpus": 3}, ["3 GPUs", "sees 2"]),
        (4, True, {"device": "cuda:1", "gpus": 2}, ["cuda:1", "--device cuda"]),
    ],
)
def test_what_cannot_be_had(machine, gpus, ray, asked, facts):
    machine(gpus, ray)
    with refuses(InputError, *facts):
        count_workers(**asked)


def test_one_process_works_in_order_and_when_asked():
    begun = []

    def job(name):
        return lambda track: (begun.append(name), name.upper())[1]

    with crew(1, "cpu") as run_all:
        results = run_all({name: job(name) for name in "ba"}, quiet)
        assert next(results) == ("b", "B")
        assert begun == ["b"]
        assert list(results) == [("a", "A")]


def threads(track):
    return torch.get_num_threads()


def mistaken(track):
    raise InputError("Not so.")


def full(track):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_several_processes(monkeypatch):
    import sys

    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # tests are no package
    with crew(2, "cpu") as run_all:
        results = dict(run_all(dict.fromkeys("abc", threads), quiet))
        assert results == dict.fromkeys("abc", torch.get_num_threads())
        with refuses(InputError, "Not so."):
            list(run_all({"a": mistaken}, quiet))
        with pytest.raises(OSError, match="No space left") as caught:
            list(run_all({"a": full}, quiet))
        assert caught.value.errno == errno.ENOSPC
    assert not ray.is_initialized()
