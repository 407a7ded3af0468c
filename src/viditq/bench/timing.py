"""How long a call takes on a device, and how much memory it needs.

On CUDA each repetition is timed by a pair of events, after a buffer larger than the L2 cache was
overwritten: a layer's inputs come from memory, as in a model, and the launch of a small op hides
behind the overwriting as it does behind the op before it. On the CPU the wall clock is read.
Declined: a minimum, which no user sees, and a mean, which one interruption decides.
"""

import gc
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from viditq.bench.results import Timing

__all__ = [
    "TimeUp",
    "clear_memory",
    "compiling",
    "copy_bandwidth",
    "copy_ms",
    "measure",
    "peak_memory",
    "time_limit",
    "wall_s",
]

FEWEST, MOST = 3, 200
"""Repetitions: only what takes a large part of a second gets fewer than 20."""

WARM_S = 0.1
"""For clocks, caches and allocators to settle; one call at least."""

CACHE_BYTES = 256 * 2**20
COPY_BYTES = 2**30


class TimeUp(BaseException):
    """The work did not end within its time; no :class:`Exception`, which compilers catch."""


def measure(call: Callable[[], Any], device: torch.device, budget_s: float = 1.0) -> Timing:
    """Time ``call`` as often as fits into ``budget_s`` seconds, after warming up."""
    with torch.no_grad():
        estimate = _warm_up(call, device)
        repetitions = min(MOST, max(FEWEST, int(budget_s / max(estimate, 1e-9))))
        if device.type == "cuda":
            times = _event_times(call, repetitions, device)
        else:
            times = [1e3 * wall_s(call, device) for _ in range(repetitions)]
    shares = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    p20, median, p80 = torch.tensor(times, dtype=torch.float64).quantile(shares).tolist()
    return Timing(median_ms=median, p20_ms=p20, p80_ms=p80, repetitions=repetitions)


def wall_s(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds on the clock until ``call`` has ended on the device."""
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def _warm_up(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call once it is warm."""
    start = time.perf_counter()
    while True:
        latest = wall_s(call, device)
        if time.perf_counter() - start >= WARM_S:
            return latest


def _event_times(call: Callable[[], Any], repetitions: int, device: torch.device) -> list[float]:
    """Milliseconds of each call, the cache overwritten before it."""
    with torch.cuda.device(device):
        cache = torch.empty(CACHE_BYTES, dtype=torch.int8, device=device)
        pairs = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in range(repetitions)
        ]
        for start, end in pairs:
            cache.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize(device)
        return [start.elapsed_time(end) for start, end in pairs]


def peak_memory(call: Callable[[], Any], device: torch.device, *, total: bool) -> int | None:
    """Most bytes that tensors take during ``call``; without ``total`` beyond those before it.

    None on the CPU, where ``call`` is made all the same.
    """
    cuda = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if cuda and not total else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    with torch.no_grad():
        call()
    _synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before if cuda else None


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by a copy of 1 GiB on the device (64 MiB on the CPU)."""
    size = COPY_BYTES if device.type == "cuda" else COPY_BYTES // 16
    return 2 * size / (copy_ms(device, 2 * size) / 1e3)


def copy_ms(device: torch.device, moved_bytes: int) -> float:
    """Median milliseconds of a copy that reads and writes ``moved_bytes`` in all."""
    source = torch.randint(-128, 128, (moved_bytes // 2,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return measure(lambda: target.copy_(source), device, budget_s=0.2).median_ms


def clear_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more: one measurement leaves nothing to the next."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


@contextmanager
def compiling(seconds: float) -> Iterator[None]:
    """A first call that compiles: within ``seconds``, and without giving up silently.

    After a few compilations of one function torch goes on without compiling it, and the time would
    be that of something else; here that is an error.
    """
    from torch._dynamo import config

    with time_limit(seconds), config.patch(fail_on_recompile_limit_hit=True):
        yield


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TimeUp` if the block takes longer; needs the main thread of a Unix process."""

    def stop(*_: object) -> None:
        raise TimeUp(f"not done within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
