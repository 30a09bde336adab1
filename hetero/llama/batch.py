"""Token rows for one llama_decode call, in memory that numpy owns so that it fills in bulk."""

import ctypes
from collections.abc import Sequence

import llama_cpp
import numpy as np
import numpy.typing as npt


class Batch:
    """Up to `capacity` rows; one sequence each. Rows are written as arrays, then `num_rows` set."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.num_rows = 0
        self.tokens = np.zeros(capacity, np.int32)
        self.positions = np.zeros(capacity, np.int32)
        self.sequences = np.zeros(capacity, np.int32)
        self.wants_logits = np.zeros(capacity, np.int8)
        self._sequences_per_row = np.ones(capacity, np.int32)
        # llama.cpp wants a pointer to each row's sequence list; ours hold one id each.
        self._sequence_pointers = self.sequences.ctypes.data + 4 * np.arange(
            capacity, dtype=np.uint64
        )
        self._struct = llama_cpp.llama_batch(
            n_tokens=0,
            token=_pointer(self.tokens, ctypes.c_int32),
            embd=None,
            pos=_pointer(self.positions, ctypes.c_int32),
            n_seq_id=_pointer(self._sequences_per_row, ctypes.c_int32),
            seq_id=ctypes.cast(
                ctypes.c_void_p(self._sequence_pointers.ctypes.data),
                ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)),
            ),
            logits=_pointer(self.wants_logits, ctypes.c_int8),
        )

    def set_prompt(
        self, tokens: Sequence[int], first_position: int, sequence: int, *, want_last: bool
    ) -> None:
        """One sequence's consecutive tokens; the logits of the last one, if wanted."""
        n = len(tokens)
        self.tokens[:n] = tokens
        self.positions[:n] = np.arange(first_position, first_position + n)
        self.sequences[:n] = sequence
        self.wants_logits[:n] = 0
        self.wants_logits[n - 1] = want_last
        self.num_rows = n

    def struct(self) -> llama_cpp.llama_batch:
        self._struct.n_tokens = self.num_rows
        return self._struct


def _pointer(array: npt.NDArray[np.generic], ctype: type) -> object:
    return array.ctypes.data_as(ctypes.POINTER(ctype))
