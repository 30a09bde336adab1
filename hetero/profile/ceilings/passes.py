"""Passes of several workers at once, and the rate they had together. No clock of its own but the
one that all processes of a machine share."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hetero.errors import EngineError


class Pass(NamedTuple):
    """One turn of the work. start, end: of `time.perf_counter`; amount: bytes, or operations."""

    start: float
    end: float
    amount: float


def repeat(task: object, method: str, start: float, seconds: float) -> list[Pass]:
    """Turns of `task.method`, which returns its amount, one after the other from `start` on for
    `seconds`; the last one is finished."""
    turn: Callable[[], float] = getattr(task, method)
    # A core that sleeps lowers its clock, and wakes late.
    while time.perf_counter() < start:
        pass
    passes: list[Pass] = []
    began = time.perf_counter()
    while began < start + seconds or not passes:
        amount = turn()
        ended = time.perf_counter()
        passes.append(Pass(began, ended, amount))
        began = ended
    return passes


def common_window(passes: Sequence[Sequence[Pass]]) -> tuple[float, float]:
    """(start, end) of the time when every worker was running; end <= start if they never met."""
    return max(ours[0].start for ours in passes), min(ours[-1].end for ours in passes)


def common_rate(passes: Sequence[Sequence[Pass]]) -> float:
    """Amount per second of all workers together in their common window: who is early or late has
    the memory to itself. Of a pass that reaches beyond, its share counts.

    Raises: EngineError if there is no such window.
    """
    start, end = common_window(passes)
    if end <= start:
        raise EngineError(
            f"need {len(passes)} cores at work together, have one that began "
            f"{start - end:.3f} s after another had ended: is the machine busy?"
        )
    inside = 0.0
    for one in (one for ours in passes for one in ours):
        overlap = min(one.end, end) - max(one.start, start)
        if overlap > 0:
            inside += one.amount * overlap / (one.end - one.start)
    return inside / (end - start)
