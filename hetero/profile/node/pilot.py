"""Fixed work beside every measurement: how fast the machine is at that moment.

Clocks change, neighbours come and go, virtual machines share memory buses. A pilot is the engine's
own step at a size that never changes, so what slows one slows the other, and the ratio stays.
Two pilots, because bandwidth and clocks drift apart: `memory`, one row, reads all weights once;
`compute`, a chunk of rows, is bound by arithmetic.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

from hetero.kv.layout import KVLayout
from hetero.llama.library import Owned
from hetero.llama.model import Model
from hetero.profile.node.rig import StepRig
from hetero.profile.node_profile import PilotName, Role

PILOTS: tuple[PilotName, ...] = ("memory", "compute")

# A few cells: next to nothing beside the weights.
_CELLS = 16
_CHUNK_TOKENS = 8

# A step can be hit by an interrupt, and one is enough to be wrong by a tenth; a long one averages
# over what hits it.
_MOST_REPEATS = 3
_LONG_S = 0.1


@dataclass
class PilotLog:
    """Seconds of every run of each pilot, in order."""

    seconds: dict[PilotName, list[float]] = field(
        default_factory=lambda: {name: [] for name in PILOTS}
    )

    def typical_s(self, name: PilotName) -> float:
        return median(self.seconds[name])

    def around_s(self, name: PilotName, index: int) -> float:
        """The pilot's seconds between run `index` and the next one: the median of two before and
        two after, for a single run is as noisy as what it is to correct."""
        return median(self.seconds[name][max(0, index - 1) : index + 3])

    def speed(self, name: PilotName, index: int) -> float:
        """Of the machine between run `index` and the next one, over its median speed."""
        return self.typical_s(name) / self.around_s(name, index)


class Pilots(Owned):
    """The two pilots of one model, on a small cache of their own."""

    def __init__(self, model: Model, layout: KVLayout, *, threads: Mapping[Role, int]) -> None:
        self.log = PilotLog()
        self._threads = threads
        self._rig = StepRig(
            model,
            layout,
            num_sequences=2,
            context_tokens=256,
            unified=False,
            num_threads=max(threads.values()),
            chunk_tokens=_CHUNK_TOKENS,
        )

    def close(self) -> None:
        self._rig.close()

    def run(self, name: PilotName) -> int:
        """Fly one pilot; the index of this run in the log."""
        if name == "memory":
            self._rig.set_threads(self._threads["decode"])
            self._rig.hold([_CELLS])
            seconds = _repeated(lambda: self._rig.time_step(1))
        else:
            self._rig.set_threads(self._threads["prefill"])
            self._rig.hold([])
            seconds = _repeated(lambda: self._rig.time_chunk(_CHUNK_TOKENS))
        self.log.seconds[name].append(median(seconds))
        return len(self.log.seconds[name]) - 1


def _repeated(step: Callable[[], float]) -> list[float]:
    seconds = [step()]
    while len(seconds) < _MOST_REPEATS and sum(seconds) < _LONG_S:
        seconds.append(step())
    return seconds
