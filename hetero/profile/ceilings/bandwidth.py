"""Reading, copying and adding up large arrays, on one core: what memory gives to code that does
nothing else. Bytes are counted as STREAM does, per stream that the program names.
"""

from itertools import cycle

import numpy as np

from hetero.errors import EngineError

# A call of numpy's costs half a microsecond, a piece of this size a millisecond.
_PIECE_BYTES = 8 * 2**20
_PAGE_BYTES = 4096
_WORD_BYTES = 8


class Arrays:
    """STREAM's a, b and c, float64, one after the other in memory of their own.

    Each method is one turn and returns its bytes. Reading and adding up take a piece at a time, and
    go on where they stopped.
    """

    def __init__(self, num_bytes: int) -> None:
        words = max(num_bytes // 3 // _PAGE_BYTES, 1) * _PAGE_BYTES // _WORD_BYTES
        memory = _aligned(3 * words)
        memory[:] = 1.0
        self.a, self.b, self.c = memory.reshape(3, words)
        half = len(memory) // 2
        self._pairs = cycle(_pieces(memory[:half], memory[half:]))
        self._triads = cycle(_pieces(self.a, self.b, self.c))

    def read(self) -> int:
        """A scalar product of the memory's two halves: of what numpy and BLAS have it
        read fastest, before any reduction of one stream."""
        left, right = next(self._pairs)
        np.dot(left, right)
        return left.nbytes + right.nbytes

    def copy(self) -> int:
        """The whole array at once: the C library passes by the cache from some size on."""
        np.copyto(self.a, self.b)
        return self.a.nbytes + self.b.nbytes

    def triad(self) -> int:
        """STREAM's a = b + scalar * c with a scalar of 1: the same words move, in one call. For any
        other numpy needs two, which on a core alone reach four fifths of STREAM even with what lies
        between them in the cache: each waits for fewer streams at a time."""
        a, b, c = next(self._triads)
        np.add(b, c, out=a)
        return a.nbytes + b.nbytes + c.nbytes


def _aligned(words: int) -> np.ndarray:
    """At a page: numpy's own begin 16 bytes after one, and wide loads then straddle cache lines."""
    num_bytes = words * _WORD_BYTES
    try:
        raw = np.empty(num_bytes + _PAGE_BYTES, np.uint8)
    except MemoryError:
        raise EngineError(
            f"arrays: need {num_bytes / 2**30:.1f} GiB, have less: give the measurement less memory"
        ) from None
    first = -raw.ctypes.data % _PAGE_BYTES
    return raw[first : first + num_bytes].view(np.float64)


def _pieces(*arrays: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    words = _PIECE_BYTES // _WORD_BYTES
    starts = range(0, len(arrays[0]), words)
    return [tuple(array[start : start + words] for array in arrays) for start in starts]
