"""How many threads are best, found by trying."""

import time
from collections.abc import Callable, Sequence
from statistics import median

_NUM_ROUNDS = 3

# Fewer threads win unless more are this much faster: each one more waits for all others.
_WORTH_IT = 0.98


def candidates(num_cores: int) -> list[int]:
    """All cores, all but one, three quarters, half, most first; a thread more than cores is
    never worth it."""
    tried = {num_cores, num_cores - 1, (3 * num_cores) // 4, num_cores // 2}
    return sorted((count for count in tried if count >= 1), reverse=True)


def time_threads(
    counts: Sequence[int],
    set_threads: Callable[[int], None],
    step: Callable[[], float],
    *,
    until: float,
) -> dict[int, float]:
    """Median seconds of a step by number of threads, taken in turns.

    until: of `time.monotonic`; past it no other count is tried, but the first has been.
    """
    seconds: dict[int, list[float]] = {}
    for count in [*counts] * _NUM_ROUNDS:
        if seconds and time.monotonic() > until:
            break
        set_threads(count)
        step()  # new threads start, and find their caches cold
        seconds.setdefault(count, []).append(step())
    return {count: median(taken) for count, taken in seconds.items()}


def best(seconds: dict[int, float]) -> int:
    """The fewest threads that are nearly as fast as the fastest."""
    fastest = min(seconds.values())
    return min(count for count, taken in seconds.items() if _WORTH_IT * taken <= fastest)
