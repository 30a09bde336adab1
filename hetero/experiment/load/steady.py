"""The part of a closed loop in which every place is taken, and places are no longer in step."""

from collections.abc import Sequence

import msgspec

from hetero.experiment.load.record import RequestRecord

# Fewer say nothing of a steady state.
_LEAST_MEASURED = 4

_LEAST_REQUESTS = 8
_REQUESTS_EACH = 6  # of which a place's first and last are not measured


class Window(msgspec.Struct, frozen=True):
    """last_s: when the last session began that ends before places stay empty."""

    begin_s: float
    end_s: float
    last_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.begin_s

    def holds(self, at_s: float | None) -> bool:
        return at_s is not None and self.begin_s < at_s <= self.end_s


def enough_requests(concurrency: int) -> int:
    """For a steady part, where nobody says how many."""
    return max(_LEAST_REQUESTS, _REQUESTS_EACH * concurrency)


def steady_window(records: Sequence[RequestRecord], concurrency: int) -> Window | None:
    """From when as many requests have ended as there are places, each having turned over about
    once, to when the last session began: from then on places stay empty. At the beginning all
    prompts come at once, and at the end answers have the server to themselves; either would make
    of a level of load what is none.

    None: the load is too short for that, at less than four requests for each place or so.
    """
    ends = sorted(record.ended_s for record in records if record.ended_s is not None)
    begins = sorted(record.due_s for record in records if record.turn == 0)
    if len(ends) <= concurrency or len(begins) < concurrency:
        return None
    window = Window(ends[concurrency - 1], begins[-1], begins[-concurrency])
    num_ended = sum(window.holds(end_s) for end_s in ends)
    fewest = min(num_ended, len(measured(records, window)))
    return window if fewest >= max(_LEAST_MEASURED, concurrency) else None


def measured(records: Sequence[RequestRecord], window: Window | None) -> list[RequestRecord]:
    """Those whose latencies count: due since the window began, and of a session that is not one of
    the last, during which places are empty. By order, so that how long one took does not decide.
    All, without a window."""
    if window is None:
        return list(records)
    began = {record.session: record.due_s for record in records if record.turn == 0}
    return [
        record
        for record in records
        if window.begin_s <= record.due_s and began[record.session] <= window.last_s
    ]
