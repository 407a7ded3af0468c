"""The search of :mod:`viditq.ops.round_tcq4`, compiled when it is first called.

A *state* is the last two codes, earlier ``a`` and later ``b``, as ``16 a + b``. With code ``c`` it
passes into ``16 b + c``, so a state has sixteen before it, one for each ``a``. All rows begin in
the same one.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from viditq.ops.round_tcq4.reference import BACK

__all__ = ["search"]

STATES = 256
NEVER = np.float32(1e30)
"""The cost of a path that is given up."""


@njit(nogil=True, fastmath=True, cache=True)
def search(
    targets: NDArray[np.float32],
    codes: NDArray[np.int8],
    root: NDArray[np.float32],
    across: NDArray[np.float32],
    values: NDArray[np.float32],
    first: int,
) -> None:
    """Find the codes of rows that do not meet.

    Args:
        targets: (N, K), in steps of each row's scale.
        codes: (N, K), to be written, in two's complement.
        root: (K, K) upper triangular ``R``: an error ``e`` costs ``|e R|²``.
        across: (K, K) the same transposed.
        values: (16, 256) of the windows, by the earliest code, the latest and the one between.
        first: the state that rows begin in.
    """
    rows, features = targets.shape
    cost, passed = np.empty(STATES, np.float32), np.empty(STATES, np.float32)
    moved = np.empty(STATES, np.float32)
    errors = np.zeros((STATES, BACK), np.float32)
    others = np.zeros((STATES, BACK), np.float32)
    origin = np.empty(STATES, np.int32)
    origins = np.empty((features, STATES), np.uint8)
    settled = np.empty(features, np.float32)
    recent = np.empty(BACK, np.float32)
    for n in range(rows):
        cost[:] = NEVER
        cost[first] = 0.0
        errors[:] = 0.0
        settled[:] = 0.0
        for k in range(features):
            # What the errors so far add at column k: those all paths agree on, then each one's own.
            own, slot = root[k, k], k % BACK
            recent[:] = 0.0
            for i in range(max(0, k - BACK + 1), k):
                recent[i % BACK] = across[k, i]
            for state in range(STATES):
                total = settled[k]
                for i in range(BACK):
                    total += errors[state, i] * recent[i]
                moved[state] = own * targets[n, k] + total
            passed[:] = NEVER
            passed *= 4
            for a in range(16):
                own_values = values[a]
                for c in range(16):
                    for b in range(16):
                        i = 16 * c + b
                        miss = moved[16 * a + b] - own * own_values[i]
                        total = cost[16 * a + b] + miss * miss
                        less = total < passed[i]
                        passed[i] = total if less else passed[i]
                        origin[i] = a if less else origin[i]
            for b in range(16):
                for c in range(16):
                    state, a = 16 * b + c, origin[16 * c + b]
                    cost[state], origins[k, state] = passed[16 * c + b], a
                    for i in range(BACK):
                        others[state, i] = errors[16 * a + b, i]
                    others[state, slot] = targets[n, k] - values[a, 16 * c + b]
            errors, others = others, errors
            oldest = k + 1 - BACK
            if oldest >= 0 and k + 1 < features:
                best = np.argmin(cost)
                error, slot = errors[best, oldest % BACK], oldest % BACK
                for state in range(STATES):
                    if errors[state, slot] != error:
                        cost[state] = NEVER
                for j in range(k + 1, features):
                    settled[j] += error * root[oldest, j]
        state = np.int32(np.argmin(cost))
        for k in range(features - 1, -1, -1):
            code = state % 16
            codes[n, k] = code if code < 8 else code - 16
            state = np.int32(origins[k, state]) * 16 + state // 16
