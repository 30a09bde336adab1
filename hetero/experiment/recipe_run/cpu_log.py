"""Processor time of a deployment's processes while a load runs, read now and then from outside."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np

from hetero.errors import EngineError

Read = Callable[[], dict[str, float]]  # seconds since each process's start, by its name

# Clock ticks are 10 ms; a reading takes one.
_EVERY_S = 0.25


class CPULog:
    """A context around a load. The load's own first and last moment are known only afterwards."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._times: list[float] = []
        self._readings: list[dict[str, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cpu-log", daemon=True)

    def cores(self, began_s: float, ended_s: float) -> dict[str, float]:
        """Processor seconds per second between two moments of time.monotonic, by process; read
        between two readings along a straight line."""
        found = {}
        for name in self._readings[0] if self._readings else ():
            seconds = [reading[name] for reading in self._readings]
            first, last = np.interp([began_s, ended_s], self._times, seconds)
            found[name] = float((last - first) / (ended_s - began_s))
        return found

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        """Until it is over, and once more then; or until a process is gone, which others tell."""
        while True:
            is_over = self._stop.wait(_EVERY_S if self._times else 0)
            try:
                reading = self._read()
            except EngineError:
                return
            self._times.append(time.monotonic())
            self._readings.append(reading)
            if is_over:
                return
