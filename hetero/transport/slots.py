"""Which receive slot is whose. No I/O, no clock of its own, one thread at a time.

A slot is lent to one transfer until every row of it is placed. A transfer that ended early may
still be written for: its slots come back when its source has said that it writes no more, or at
the latest when so much time has passed that a source which was stopped meanwhile would notice.
"""

from collections.abc import Sequence

# More than fill any path at a time: a slot is on its way, being written, or being read.
_MAX_LENT = 8


class SlotBook:
    def __init__(self, num_slots: int, num_transfers: int) -> None:
        """num_transfers: that there may be at once; each gets its share."""
        self._share = max(1, min(_MAX_LENT, num_slots // num_transfers))
        self._free = list(range(num_slots))
        self._lent: dict[str, tuple[int, ...]] = {}  # by ticket id
        self._quarantined: list[tuple[float, tuple[int, ...]]] = []  # until then

    def lend(self, ticket_id: str, now: float) -> tuple[int, ...]:
        """A share of all, so that whoever comes next gets one, too; none if there are none."""
        self._end_quarantines(now)
        slots, self._free = tuple(self._free[: self._share]), self._free[self._share :]
        self._lent[ticket_id] = slots
        return slots

    def is_lent(self, slot: int, ticket_id: str) -> bool:
        return slot in self._lent.get(ticket_id, ())

    def take_back(self, ticket_id: str) -> None:
        """Nobody writes to its slots any more. Unknown ids are fine, here and below."""
        self._free += self._lent.pop(ticket_id, ())

    def quarantine(self, ticket_id: str, until: float) -> None:
        slots = self._lent.pop(ticket_id, ())
        if slots:
            self._quarantined.append((until, slots))

    def num_free(self, now: float) -> int:
        self._end_quarantines(now)
        return len(self._free)

    def _end_quarantines(self, now: float) -> None:
        for until, slots in self._quarantined:
            if until <= now:
                self._free += slots
        self._quarantined = [one for one in self._quarantined if one[0] > now]


class BorrowedSlots:
    """The other end's view: what one transfer may write to, and what waits for credit there."""

    def __init__(self, slots: Sequence[int]) -> None:
        self._free = list(slots)
        self._in_flight: dict[int, int] = {}  # slot, by frame

    @property
    def has_free(self) -> bool:
        return bool(self._free)

    def take(self, frame: int) -> int:
        slot = self._free.pop()
        self._in_flight[frame] = slot
        return slot

    def credited(self, frame: int) -> None:
        """Frames that were not in a slot are fine."""
        slot = self._in_flight.pop(frame, None)
        if slot is not None:
            self._free.append(slot)
