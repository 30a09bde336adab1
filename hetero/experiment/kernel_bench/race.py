"""Ours against what a user would otherwise run: arms in turns, on the same inputs."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from hetero.errors import EngineError
from hetero.experiment.figures import Say, rounded
from hetero.experiment.kernel_bench.ceilings import Ceilings
from hetero.experiment.kernel_bench.settings import Settings
from hetero.experiment.kernel_bench.stopwatch import Arm, Call, Stopwatch
from hetero.experiment.turns import flat, ratios, take_turns

OURS = "ours"

# Both round to 16 bits at other places; more is another function, and its time means nothing.
_MOST_DISAGREEMENT = 0.02


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every figure is measured with. `capability` as 90 for 9.0."""

    settings: Settings
    device: torch.device
    capability: int
    stopwatch: Stopwatch
    ceilings: Ceilings
    say: Say

    @property
    def dtype(self) -> torch.dtype:
        """What serving computes in; Triton's interpreter multiplies bfloat16's bits as integers."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float16

    def num_sets(self, set_bytes: int) -> int:
        """How many inputs of that size calls alternate over."""
        return max(2, -(-self.settings.rotated_bytes // set_bytes))


@dataclass(frozen=True, kw_only=True)
class Race:
    rounds: Mapping[str, Sequence[Sequence[float]]]  # seconds, by arm
    refused: Mapping[str, str]  # peers that don't run, with their reasons

    def seconds(self, arm: str = OURS) -> float:
        return median(flat(self.rounds[arm]))

    def times_faster(self, arm: str) -> float:
        """A peer's time over ours."""
        return median(ratios(self.rounds[arm], self.rounds[OURS]))

    def samples(self) -> dict[str, list[float]]:
        return {f"{name}_s": flat(rounds) for name, rounds in self.rounds.items()}

    def comparison(self) -> dict[str, object]:
        """Of a figure's parameters: what became of the peers."""
        peers = [name for name in self.rounds if name != OURS]
        return {
            "times_faster_than": {name: rounded(self.times_faster(name)) for name in peers},
            "refused": dict(self.refused),
        }


def race(
    bench: Bench,
    ours: Sequence[Call],
    peers: Mapping[str, Sequence[Call]],
    *,
    compare: bool = True,
) -> Race:
    """Measure ours, and the peers that run and, unless not to `compare`, give the same result.

    The nth calls of all arms have the same inputs.
    Raises: EngineError if peers run and none gives our result: it is ours then that is wrong.
    """

    def arm(calls: Sequence[Call]) -> Arm:
        settings = bench.settings
        return Arm(bench.stopwatch, calls, settings.turn_s, settings.most_calls)

    running, refused, differing = {OURS: arm(ours)}, {}, []
    result = running[OURS].warm_up()
    for name, calls in peers.items():
        peer = arm(calls)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            # A peer is foreign code: whatever it raises is its reason.
            try:
                difference = disagreement(result, peer.warm_up()) if compare else 0.0
            except Exception as error:
                refused[name] = _reason(error, [str(warning.message) for warning in warned])
            else:
                if difference <= _MOST_DISAGREEMENT:
                    running[name] = peer
                    continue
                refused[name] = f"its result differs from ours by {difference:.2g}"
                differing.append(name)
        bench.say(f"  {name} is left out: {refused[name]}")
    if differing and len(running) == 1:
        raise EngineError(f"our result is not that of {' or '.join(differing)}: {refused}")
    turns = {name: peer.turn for name, peer in running.items()}
    return Race(rounds=take_turns(turns, bench.settings.num_rounds), refused=refused)


def disagreement(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of bytes the share that differs; of numbers the norm of the difference over the norm."""
    if a.shape != b.shape:
        raise EngineError(f"a result: need shape {tuple(a.shape)}, have {tuple(b.shape)}")
    if a.dtype == torch.uint8:
        return float((a != b).float().mean())
    a, b = a.float(), b.float()
    return float((a - b).norm() / b.norm())


def _reason(error: Exception, warned: Sequence[str]) -> str:
    lines = [f"{type(error).__name__}: {error}", *warned]
    return " | ".join(line.strip().splitlines()[0][:200] for line in lines if line.strip())
