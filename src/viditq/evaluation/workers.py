"""Jobs one after the other in this process, or side by side in several through Ray.

Each of Ray's processes sees one GPU, or is one of several on the CPU with as many threads as this
process has: what a job computes does not depend on where it runs. Only this machine is used, never
a cluster. Ray is an extra (``pip install 'viditq[ray]'``) and is imported when it is needed.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch

from viditq.errors import InputError
from viditq.progress import Track, quiet

__all__ = ["RunAll", "count_workers", "crew", "has_ray"]

T = TypeVar("T")
Job = Callable[[Track], T]
"""What is to be done; importable wherever viditq is, since Ray sends it to another process."""


class RunAll(Protocol):
    """Run jobs; give each one's name and result when it is done, in no promised order."""

    def __call__(self, jobs: Mapping[str, Job[T]], track: Track) -> Iterator[tuple[str, T]]: ...


def has_ray() -> bool:
    """Whether Ray is installed."""
    return importlib.util.find_spec("ray") is not None


def count_workers(device: str, gpus: int | None = None, workers: int | None = None) -> int:
    """How many processes to use.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``; the last is one GPU, whatever else there is.
        gpus: GPUs to use; None takes all that this process sees, or one where Ray is missing.
        workers: processes on the CPU; None is this one.

    Raises InputError when there are fewer GPUs, or several are asked for without Ray.
    """
    if torch.device(device).type == "cpu":
        wanted = workers or 1
    elif device != "cuda":
        wanted = gpus or 1
        if wanted > 1:
            raise InputError(f"{device} is one GPU; give --device cuda to use {wanted}.")
    else:
        there = torch.cuda.device_count()
        wanted = gpus or (there if has_ray() else 1)
        if wanted > there:
            raise InputError(f"{wanted} GPUs were asked for, this process sees {there}.")
    if wanted > 1 and not has_ray():
        raise InputError(
            f"{wanted} processes at once need Ray: install it with pip install 'viditq[ray]', or "
            "go on with one."
        )
    return wanted


@contextmanager
def crew(count: int, device: str) -> Iterator[RunAll]:
    """Give a function that runs jobs in ``count`` processes; they end with the block."""
    if count == 1:
        yield _one_by_one
        return
    ray: Any = importlib.import_module("ray")
    ray.init(
        address="local",
        num_cpus=count,
        num_gpus=0 if device == "cpu" else count,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        yield functools.partial(_side_by_side, ray, 0 if device == "cpu" else 1)
    finally:
        ray.shutdown()


def _one_by_one(jobs: Mapping[str, Job[T]], track: Track) -> Iterator[tuple[str, T]]:
    for name, job in jobs.items():
        yield name, job(track)


def _side_by_side(
    ray: Any, gpus: int, jobs: Mapping[str, Job[T]], track: Track
) -> Iterator[tuple[str, T]]:
    remote = ray.remote(_alone).options(num_cpus=1, num_gpus=gpus, max_retries=0)
    names = {remote.remote(job, torch.get_num_threads()): name for name, job in jobs.items()}

    def finished() -> Iterator[Any]:
        waiting = list(names)
        while waiting:
            (done, *_), waiting = ray.wait(waiting)
            yield done

    for done in track(finished(), "methods", len(names)):
        try:
            result = ray.get(done)
        except ray.exceptions.RayTaskError as failure:
            raise failure.cause from failure  # as it would have been in this process
        yield names[done], result


def _alone(job: Job[T], threads: int) -> T:
    """Run a job in one of Ray's processes, with as many threads as where it was sent from."""
    torch.set_num_threads(threads)
    return job(quiet)
