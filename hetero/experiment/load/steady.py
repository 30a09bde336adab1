"""The part of a closed loop in which every place is taken, and places are no longer in step."""

from collections.abc import Sequence

import msgspec

from hetero.experiment.load.record import RequestRecord

# Fewer say nothing of a steady state.
_LEAST_REQUESTS = 4


class Window(msgspec.Struct, frozen=True):
    begin_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.begin_s

    def holds(self, at_s: float | None) -> bool:
        return at_s is not None and self.begin_s < at_s <= self.end_s


def steady_window(records: Sequence[RequestRecord], concurrency: int) -> Window | None:
    """From when as many requests have ended as there are places, each having turned over about
    once, to when the last one began: from then on places stay empty. At the beginning all prompts
    come at once, and at the end answers have the server to themselves; either would make of a
    level of load what is none.

    None: the load is too short for that, at less than four requests for each place or so.
    """
    ends = sorted(record.ended_s for record in records if record.ended_s is not None)
    if len(ends) <= concurrency:
        return None
    window = Window(ends[concurrency - 1], max(record.due_s for record in records))
    num_ended = sum(window.holds(end_s) for end_s in ends)
    return window if num_ended >= max(_LEAST_REQUESTS, concurrency) else None


def measured(records: Sequence[RequestRecord], window: Window | None) -> list[RequestRecord]:
    """Those whose latencies count: due within the window; all, without one."""
    if window is None:
        return list(records)
    return [record for record in records if window.begin_s <= record.due_s <= window.end_s]
