"""Which sequence ids are free, promised, or taken.

A job is admitted when every choice of it is promised a slot; which one is decided only when the
sequence joins, the lowest free then, because llama.cpp splits a batch where ids skip one.
"""

import heapq


class Slots:
    """`num_slots` ids. Every `take` uses up one promise; every slot taken is given back once."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.num_promised = 0
        self._free = list(range(num_slots))  # a heap

    @property
    def num_unpromised(self) -> int:
        return len(self._free) - self.num_promised

    @property
    def lowest_free(self) -> int | None:
        return self._free[0] if self._free else None

    def is_free(self, slot: int) -> bool:
        return slot in self._free

    def promise(self, num_slots: int) -> None:
        assert num_slots <= self.num_unpromised
        self.num_promised += num_slots

    def unpromise(self, num_slots: int) -> None:
        assert num_slots <= self.num_promised
        self.num_promised -= num_slots

    def take(self) -> int:
        """The lowest free slot, for a sequence that joins the batch."""
        self.unpromise(1)
        return heapq.heappop(self._free)

    def take_highest(self) -> int:
        """The highest free slot, out of the way of running sequences."""
        self.unpromise(1)
        slot = max(self._free)
        self._free.remove(slot)
        heapq.heapify(self._free)
        return slot

    def give_back(self, slot: int) -> None:
        assert not self.is_free(slot), f"slot {slot} given back twice"
        heapq.heappush(self._free, slot)
