"""Fixed work beside every measurement: how fast the machine is at that moment.

Clocks change, neighbours come and go, virtual machines share memory buses. A pilot is the engine's
own step at a size that never changes, so what slows one slows the other, and the ratio stays.
Two pilots, because bandwidth and clocks drift apart: `memory`, one row, reads all weights once;
`compute`, a chunk of rows, is bound by arithmetic.

What disturbs a step comes and goes within a second and only ever adds, so steps are repeated and
the fastest counts. Pilots are for what lasts longer, and their own disturbances must not blur it:
a machine's speed is taken from the fastest tenth of many.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hetero.kv.layout import KVLayout
from hetero.llama.library import Owned
from hetero.llama.model import Model
from hetero.profile.node.rig import StepRig
from hetero.profile.node_profile import PilotName, Role

PILOTS: tuple[PilotName, ...] = ("memory", "compute")

_UNDISTURBED = 0.1  # of all runs are no slower
_RUNS_TO_EACH_SIDE = 8

# A few cells: next to nothing beside the weights.
_CELLS = 16
_CHUNK_TOKENS = 8

_MOST_REPEATS = 3
_LONG_S = 0.1


class PilotLog:
    """Of every run of one pilot, in order, the seconds of its fastest step; and of all steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.single_s: list[float] = []

    def add(self, steps_s: Sequence[float]) -> int:
        """The index of this run."""
        self.seconds.append(min(steps_s))
        self.single_s += steps_s
        return len(self.seconds) - 1

    @property
    def undisturbed_s(self) -> float:
        return _fastest_tenth(self.seconds)

    def around_s(self, index: int) -> float:
        """Undisturbed seconds at about the time of run `index`."""
        first = max(0, index - _RUNS_TO_EACH_SIDE)
        return _fastest_tenth(self.seconds[first : index + _RUNS_TO_EACH_SIDE + 1])

    def speed(self, index: int) -> float:
        """Of the machine at about run `index`, over that of the whole log."""
        return self.undisturbed_s / self.around_s(index)


class Pilots(Owned):
    """The two pilots of one model, on a small cache of their own."""

    def __init__(self, model: Model, layout: KVLayout, *, threads: Mapping[Role, int]) -> None:
        self.logs = {name: PilotLog() for name in PILOTS}
        self._threads = threads
        self._rig = StepRig(
            model,
            layout,
            num_sequences=1,
            context_tokens=256,
            unified=False,
            num_threads=max(threads.values()),
            chunk_tokens=_CHUNK_TOKENS,
        )

    def close(self) -> None:
        self._rig.close()

    def run(self, name: PilotName) -> int:
        """Fly one pilot; the index of this run in its log."""
        if name == "memory":
            self._rig.set_threads(self._threads["decode"])
            self._rig.hold([_CELLS])
            return self.logs[name].add(_few_times(lambda: self._rig.time_step(1)))
        self._rig.set_threads(self._threads["prefill"])
        self._rig.hold([])
        return self.logs[name].add(_few_times(lambda: self._rig.time_chunk(_CHUNK_TOKENS)))


def _few_times(step: Callable[[], float]) -> list[float]:
    """A long step averages over what hits it, so one is enough."""
    seconds = [step()]
    while len(seconds) < _MOST_REPEATS and sum(seconds) < _LONG_S:
        seconds.append(step())
    return seconds


def _fastest_tenth(seconds: list[float]) -> float:
    return float(np.quantile(seconds, _UNDISTURBED))
