"""How long calls take: by the GPU's own clock, or by the wall's where a call returns when done."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Protocol

import torch

Call = Callable[[], torch.Tensor]

# On a fast GPU near a millisecond: what it takes to queue a turn's calls from Python.
_NUM_FILLS = 8

_LEAST_S = 1e-6  # that a GPU's clock tells from nothing


class Stopwatch(Protocol):
    def seconds(self, calls: Iterator[Call], num_calls: int, held: deque[torch.Tensor]) -> float:
        """Per call, back to back. Results go to `held`, which decides when memory is used again."""


class WallStopwatch:
    def seconds(self, calls: Iterator[Call], num_calls: int, held: deque[torch.Tensor]) -> float:
        started = time.perf_counter()
        for _ in range(num_calls):
            held.append(next(calls)())
        return (time.perf_counter() - started) / num_calls


class GpuStopwatch:
    """CUDA events around the calls. Before them the GPU gets something to do that takes longer than
    queueing them from Python does: a short kernel would else wait for its own launch."""

    def __init__(self, device: torch.device, runway_bytes: int) -> None:
        self._runway = torch.empty(runway_bytes, dtype=torch.uint8, device=device)

    def seconds(self, calls: Iterator[Call], num_calls: int, held: deque[torch.Tensor]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(_NUM_FILLS):
            self._runway.zero_()
        start.record()
        for _ in range(num_calls):
            held.append(next(calls)())
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000 / num_calls


class Arm:
    """One way of doing the work. `calls` do it on memory of their own each, and take turns."""

    def __init__(
        self, stopwatch: Stopwatch, calls: Sequence[Call], turn_s: float, most_calls: int
    ) -> None:
        self._stopwatch = stopwatch
        self._calls = cycle(calls)
        # What is held has other addresses than what is written.
        self._held: deque[torch.Tensor] = deque(maxlen=len(calls))
        self._num_calls = 1
        self._turn_s, self._most_calls = turn_s, most_calls

    def warm_up(self) -> torch.Tensor:
        """What the first call returns; it compiles kernels. Then size the turns."""
        first = next(self._calls)()
        self.turn()
        (seconds,) = self.turn()
        most = min(self._turn_s / max(seconds, _LEAST_S), self._most_calls)
        self._num_calls = max(1, round(most))
        return first

    def turn(self) -> list[float]:
        return [self._stopwatch.seconds(self._calls, self._num_calls, self._held)]
