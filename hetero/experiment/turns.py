"""Arms measured in turns: A B A B ..., so that a slow minute of the machine slows all of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

Turn = Callable[[], list[float]]


def take_turns(arms: Mapping[str, Turn], num_rounds: int) -> dict[str, list[list[float]]]:
    """Each arm's samples, round by round. A first round warms up and is dropped."""
    rounds: dict[str, list[list[float]]] = {name: [] for name in arms}
    for index in range(1 + num_rounds):
        for name, turn in arms.items():
            samples = turn()
            if index > 0:
                rounds[name].append(samples)
    return rounds


def ratios(
    numerator: Sequence[Sequence[float]], denominator: Sequence[Sequence[float]]
) -> list[float]:
    """Of the medians of each round: neighbours in time, so that drift cancels out."""
    return [median(a) / median(b) for a, b in zip(numerator, denominator, strict=True)]


def timed_steps(step: Callable[[], object], num_steps: int) -> list[float]:
    """Seconds of each step, after one that warms up: another arm has had the caches."""
    seconds = []
    for _ in range(1 + num_steps):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def flat(rounds: Sequence[Sequence[float]]) -> list[float]:
    return [sample for samples in rounds for sample in samples]
