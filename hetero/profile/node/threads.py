"""How many threads are best, found by trying."""

from collections.abc import Callable, Sequence
from statistics import median

_NUM_ROUNDS = 3

# Fewer threads win unless more are this much faster: each one more waits for all others.
_WORTH_IT = 0.98


def candidates(num_cores: int) -> list[int]:
    """All cores, all but one, three quarters, half; a thread more than cores is never worth it."""
    tried = {num_cores, num_cores - 1, (3 * num_cores) // 4, num_cores // 2}
    return sorted(count for count in tried if count >= 1)


def time_threads(
    counts: Sequence[int], set_threads: Callable[[int], None], step: Callable[[], float]
) -> dict[int, float]:
    """Median seconds of a step by number of threads, taken in turns."""
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(_NUM_ROUNDS):
        for count in counts:
            set_threads(count)
            step()  # new threads start, and find their caches cold
            seconds[count].append(step())
    return {count: median(taken) for count, taken in seconds.items()}


def best(seconds: dict[int, float]) -> int:
    """The fewest threads that are nearly as fast as the fastest."""
    fastest = min(seconds.values())
    return min(count for count, taken in seconds.items() if _WORTH_IT * taken <= fastest)
