"""The sequences that decode together: their slots, their rows, one llama_decode for all.

In a cache of per-sequence streams llama.cpp splits a batch where slot ids skip one, and reads the
weights again for each part. So free slots between running ones decode a throwaway row, until the
time lost to such rows has paid for moving the highest sequence down into the lowest gap.
"""

import logging
import time

import numpy as np
import numpy.typing as npt

from hetero.decode.sequence import NO_SLOT, Sequence
from hetero.decode.slots import Slots
from hetero.errors import EngineError
from hetero.llama.batch import Batch
from hetero.llama.context import Context

logger = logging.getLogger(__name__)


class RunningBatch:
    """Joined sequences by slot, and what each feeds next."""

    def __init__(self, context: Context, slots: Slots, token_bytes: int) -> None:
        self.sequences: dict[int, Sequence] = {}
        self.step_s = 0.0  # running average
        self.last_step_s = 0.0
        self.num_moves = 0
        self._context = context
        self._slots = slots
        self._token_bytes = token_bytes
        self._batch = Batch(slots.num_slots)
        self._next_tokens = np.zeros(slots.num_slots, np.int32)
        self._next_positions = np.zeros(slots.num_slots, np.int32)
        self._copy_bytes_per_s = 0.0
        self._lost_to_padding_s = 0.0
        self.plan_rows()

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def num_cells(self) -> int:
        return int(sum(self._next_positions[slot] for slot in self.sequences))

    def restore(self, sequence: Sequence, blob: npt.NDArray[np.uint8], next_token: int) -> float:
        """Put an arrived state into the lowest free slot and join it; the seconds it took.

        Raises: EngineError, and then the slot is still promised.
        """
        started = time.perf_counter()
        slot = self._slots.take()
        try:
            self._context.restore_sequence(slot, blob)
        except EngineError:
            self._slots.give_back(slot)
            self._slots.promise(1)
            raise
        seconds = time.perf_counter() - started
        self._copy_bytes_per_s = _average(self._copy_bytes_per_s, blob.nbytes / seconds)
        self.join(sequence, slot, next_token)
        return seconds

    def join(self, sequence: Sequence, slot: int, next_token: int) -> None:
        """Run a sequence whose cells already are in `slot`."""
        sequence.slot = slot
        self.sequences[slot] = sequence
        self._next_tokens[slot] = next_token
        self._next_positions[slot] = sequence.next_position - 1
        self.plan_rows()

    def leave(self, sequence: Sequence) -> None:
        """Free a sequence's slot, cells and sampler."""
        self._vacate(sequence.slot)
        sequence.slot = NO_SLOT
        sequence.sampler.close()

    def decode(self) -> list[tuple[int, Sequence]]:
        """One step; (row of the logits, sequence) for each running sequence.

        Raises: EngineError, and then no sequence has advanced.
        """
        self._fill_gaps()
        started = time.perf_counter()
        batch, rows = self._batch, self._rows
        num_rows = batch.num_rows = len(rows)
        batch.tokens[:num_rows] = self._next_tokens[rows]
        batch.positions[:num_rows] = self._next_positions[rows]
        batch.sequences[:num_rows] = rows
        batch.wants_logits[:num_rows] = self._row_runs
        self._context.decode(batch)
        for slot in self._padding:
            self._context.remove_sequence(slot)
        seconds = time.perf_counter() - started
        self.step_s, self.last_step_s = _average(self.step_s, seconds), seconds
        self._lost_to_padding_s += seconds * len(self._padding) / num_rows
        return self._row_sequences

    def advance(self, sequence: Sequence, token: int) -> None:
        """Feed `token` in the sequence's next step."""
        self._next_tokens[sequence.slot] = token
        self._next_positions[sequence.slot] += 1

    def _fill_gaps(self) -> None:
        if not self._padding:
            self._lost_to_padding_s = 0.0
            return
        highest = self.sequences[max(self.sequences)]
        num_bytes = int(self._next_positions[highest.slot]) * self._token_bytes
        # Export and restore: each copies the sequence once. The first move ever measures the rate.
        afforded_bytes = self._lost_to_padding_s * self._copy_bytes_per_s
        if afforded_bytes > 2 * num_bytes or not self._copy_bytes_per_s:
            self._lost_to_padding_s = 0.0
            self._move_down(highest)

    def _move_down(self, sequence: Sequence) -> None:
        if self._slots.num_unpromised == 0:
            return  # every gap is about to be taken by an arrival
        source, next_token = sequence.slot, int(self._next_tokens[sequence.slot])
        blob = self._context.export_sequence(source)
        self._slots.promise(1)
        try:
            self.restore(sequence, blob, next_token)
        except EngineError as error:
            self._slots.unpromise(1)
            logger.warning("sequence stays in slot %d: %s", source, error)
            return
        self._vacate(source)
        self.num_moves += 1

    def _vacate(self, slot: int) -> None:
        del self.sequences[slot]
        self._context.remove_sequence(slot)
        self._slots.give_back(slot)
        self.plan_rows()

    def plan_rows(self) -> None:
        """Settle the next batches' slots, ascending: those that run, and free ones in between.

        To be called whenever a slot was taken or given back, also for a prompt being read.
        """
        slots = sorted(self.sequences)
        if slots and not self._context.config.unified:
            span = range(slots[0], slots[-1] + 1)
            slots = [s for s in span if s in self.sequences or self._slots.is_free(s)]
        self._rows = np.array(slots, np.int64)
        self._row_runs = np.array([s in self.sequences for s in slots], np.int8)
        self._padding = [s for s in slots if s not in self.sequences]
        self._row_sequences = [
            (row, self.sequences[slot]) for row, slot in enumerate(slots) if slot in self.sequences
        ]
        for slot in self._padding:
            self._next_tokens[slot] = self._next_positions[slot] = 0


def _average(old: float, new: float) -> float:
    """A running average that starts with the first value."""
    return new if old == 0 else 0.8 * old + 0.2 * new
