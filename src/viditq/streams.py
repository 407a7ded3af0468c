"""Independent pieces of work side by side on one GPU, each on a stream of its own.

Rounding is long chains of short kernels, which leave most of a GPU idle, and the processor that
launches them waits for torch as long as it works. So some threads launch at a time. On a CPU, whose
cores torch shares out by itself, one piece comes after the other.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

__all__ = ["map_streams"]

T = TypeVar("T")
R = TypeVar("R")

WORKERS, WORKING_BYTES = 4, 12 << 30
"""Threads on a GPU, and what they may use there together."""


def map_streams(
    function: Callable[[T], R],
    items: Iterable[T],
    device: torch.device,
    size_bytes: Callable[[T], int] = lambda _: 0,
) -> Iterator[R]:
    """``function`` of each item, in the order of the items.

    Args:
        function: launches on the current stream of ``device``; what it returns is finished when it
            is handed out. It must not lean on what is set for a thread, such as gradient mode.
        items: at most ``2 * WORKERS`` are begun before the first is handed out.
        device: where the work is.
        size_bytes: what an item needs there while it is worked on. Items that need more than
            ``WORKING_BYTES`` together wait for each other.
    """
    if device.type != "cuda":
        yield from map(function, items)
        return

    # torch loads its linear algebra at the first call, and two threads must not both be first.
    torch.linalg.cholesky_ex(torch.eye(2, device=device))
    # What the stream of the caller has launched is there before a thread begins.
    torch.cuda.synchronize(device)
    own, room = threading.local(), _Room(WORKING_BYTES)

    def begin() -> None:
        own.stream = torch.cuda.Stream(device)

    def on_own_stream(item: T) -> R:
        with (
            room.taken(size_bytes(item)),
            torch.cuda.device(device),
            torch.cuda.stream(own.stream),
        ):
            result = function(item)
            own.stream.synchronize()
            return result

    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(WORKERS, initializer=begin) as threads:
        try:
            for item in items:
                waiting.append(threads.submit(on_own_stream, item))
                if len(waiting) == 2 * WORKERS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _Room:
    """Memory that threads share; one may always work, however much it needs."""

    def __init__(self, size_bytes: int) -> None:
        self._left, self._working, self._changed = size_bytes, 0, threading.Condition()

    @contextmanager
    def taken(self, size_bytes: int) -> Iterator[None]:
        """Wait until there is so much, and have it."""
        with self._changed:
            self._changed.wait_for(lambda: self._left >= size_bytes or not self._working)
            self._left, self._working = self._left - size_bytes, self._working + 1
        try:
            yield
        finally:
            with self._changed:
                self._left, self._working = self._left + size_bytes, self._working - 1
                self._changed.notify_all()
