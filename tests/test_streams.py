"""Work side by side gives what it gives one after the other, in order."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from viditq.streams import WORKERS, _Room, map_streams

CPU = torch.device("cpu")


def test_on_a_cpu_one_after_the_other():
    threads = []

    def square(x: int) -> int:
        threads.append(threading.current_thread())
        return x * x

    assert list(map_streams(square, range(5), CPU)) == [0, 1, 4, 9, 16]
    assert set(threads) == {threading.current_thread()}


def test_nothing_to_do():
    assert list(map_streams(str, [], CPU)) == []


def test_what_needs_much_waits_for_the_rest():
    room, most, now, lock = _Room(10), [0], [0], threading.Lock()

    def use(size: int) -> None:
        with room.taken(size):
            with lock:
                now[0] += size
                most[0] = max(most[0], now[0])
            time.sleep(0.002)
            with lock:
                now[0] -= size

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, [4, 6, 3, 10, 1, 1, 9, 2] * 5))
    assert most[0] <= 10
    with room.taken(1000):  # more than there is, but nobody else is there
        pass


def test_a_failure_gives_its_room_back():
    room = _Room(10)
    with pytest.raises(ValueError, match="lost"), room.taken(10):
        raise ValueError("lost")
    with room.taken(10):
        pass


@pytest.mark.gpu
class TestOnCuda:
    def test_same_results_in_order(self):
        cuda = torch.device("cuda")
        given = [torch.randn(64 + i, 64 + i, device=cuda, dtype=torch.float64) for i in range(20)]

        def chain(x):
            assert torch.cuda.current_stream(cuda) != torch.cuda.default_stream(cuda)
            for _ in range(50):
                x = (x @ x) / x.norm()
            return x

        for mine, start in zip(map_streams(chain, given, cuda), given, strict=True):
            expected = start
            for _ in range(50):
                expected = (expected @ expected) / expected.norm()
            torch.testing.assert_close(mine, expected)

    def test_what_fails_is_raised_and_the_rest_left(self):
        begun = []

        def fail(x):
            begun.append(x)
            if x == 1:
                raise ValueError("the second")
            return x

        results = map_streams(fail, range(1000), torch.device("cuda"))
        assert next(results) == 0
        with pytest.raises(ValueError, match="the second"):
            list(results)
        assert len(begun) <= 2 * WORKERS + 2
