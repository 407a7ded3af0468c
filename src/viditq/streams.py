"""Independent pieces of work side by side on one GPU, each on a stream of its own.

Rounding is long chains of short kernels, which leave most of a GPU idle, and the processor that
launches them waits for torch as long as it works. So some threads launch at a time. On a CPU, whose
cores torch shares out by itself, one piece comes after the other.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["map_streams"]

T = TypeVar("T")
R = TypeVar("R")


def map_streams(
    function: Callable[[T], R], items: Iterable[T], device: torch.device, workers: int
) -> Iterator[R]:
    """``function`` of each item, in the order of the items.

    Args:
        function: launches on the current stream of ``device``; what it returns is finished when it
            is handed out. It must not lean on what is set for a thread, such as gradient mode.
        items: at most ``2 * workers`` are begun before the first is handed out.
        device: where the work is.
        workers: threads on a GPU.
    """
    if device.type != "cuda" or workers < 2:
        yield from map(function, items)
        return

    # What the stream of the caller has launched is there before a thread begins.
    torch.cuda.synchronize(device)
    own = threading.local()

    def begin() -> None:
        own.stream = torch.cuda.Stream(device)

    def on_own_stream(item: T) -> R:
        with torch.cuda.device(device), torch.cuda.stream(own.stream):
            result = function(item)
            own.stream.synchronize()
            return result

    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers, initializer=begin) as threads:
        try:
            for item in items:
                waiting.append(threads.submit(on_own_stream, item))
                if len(waiting) == 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
