"""Work side by side gives what it gives one after the other, in order."""

import threading

import pytest
import torch

from viditq.streams import map_streams

CPU = torch.device("cpu")


def test_on_a_cpu_one_after_the_other():
    threads = []

    def square(x: int) -> int:
        threads.append(threading.current_thread())
        return x * x

    assert list(map_streams(square, range(5), CPU, 4)) == [0, 1, 4, 9, 16]
    assert set(threads) == {threading.current_thread()}


def test_nothing_to_do():
    assert list(map_streams(str, [], CPU, 4)) == []


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

        for mine, start in zip(map_streams(chain, given, cuda, 4), given, strict=True):
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

        results = map_streams(fail, range(1000), torch.device("cuda"), 2)
        assert next(results) == 0
        with pytest.raises(ValueError, match="the second"):
            list(results)
        assert len(begun) < 10
