"""Fixed work on the cores of a run, before and after each arm: was the machine as fast as before?

A process for each core that sleeps between, and two kinds of work, because bandwidth and clocks
drift apart: reading memory, and a matrix product. All cores at once, as arms have them. What
disturbs a turn only ever adds, so a fast tenth of many turns counts.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import numpy as np

from hetero.profile.ceilings.bandwidth import Arrays
from hetero.profile.ceilings.flops import Product
from hetero.profile.ceilings.passes import repeat
from hetero.profile.ceilings.workers import Workers

# Larger than what a core finds in a cache that it shares with others.
_ARRAY_BYTES = 256 * 2**20

_SECONDS = 0.3  # each kind; turns take a millisecond to ten
_UNDISTURBED = 0.1


class PilotTask:
    """What a worker holds."""

    def __init__(self) -> None:
        self._arrays, self._product = Arrays(_ARRAY_BYTES), Product()

    def memory(self) -> float:
        return self._arrays.read()

    def compute(self) -> float:
        return self._product.f32()


def turn_s(task: PilotTask, method: str, seconds: float) -> float:
    """Of a turn that little disturbed."""
    passes = repeat(task, method, 0.0, 0.0)  # begins now: caches and clocks wake up
    passes = repeat(task, method, passes[-1].end, seconds)
    return float(np.quantile([one.end - one.start for one in passes], _UNDISTURBED))


class Pilots:
    """A context. Without cores there is nothing to fly, and no drift is ever seen."""

    def __init__(self, cpus: Sequence[int]) -> None:
        self._cpus = list(cpus)
        self._opened = ExitStack()
        self._workers: Workers | None = None

    def run(self) -> dict[str, float]:
        """Seconds of a turn, by core and kind."""
        if self._workers is None:
            return {}
        found: dict[str, float] = {}
        for kind in ("memory", "compute"):
            seconds = self._workers.call(turn_s, kind, _SECONDS)
            found |= {f"cpu{cpu} {kind}": s for cpu, s in zip(self._cpus, seconds, strict=True)}
        return found

    def __enter__(self) -> Self:
        if self._cpus:
            workers = self._opened.enter_context(Workers([[cpu] for cpu in self._cpus]))
            workers.prepare(PilotTask)
            self._workers = workers
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._workers = None
        self._opened.close()
