"""Reading, copying and adding up large arrays, on one core: what memory gives to code that does
nothing else. Bytes are counted as STREAM does, per stream that the program names.
"""

from collections.abc import Sequence

import numpy as np

from hetero.errors import EngineError

# A call of numpy's costs half a microsecond, a piece of this size a millisecond.
_PIECE_BYTES = 8 * 2**20
_PAGE_BYTES = 4096
_WORD_BYTES = 8


class Arrays:
    """STREAM's a, b and c, float64, one after the other in memory of their own.

    Each method is one turn and returns its bytes. Read and triad go on where the last turn ended,
    so that no part stays in a cache.
    """

    def __init__(self, num_bytes: int) -> None:
        words = max(num_bytes // 3 // _PAGE_BYTES, 1) * _PAGE_BYTES // _WORD_BYTES
        memory = _aligned(3 * words)
        memory[:] = 1.0
        self.a, self.b, self.c = memory.reshape(3, words)
        self._triads = _pieces((self.a, self.b, self.c))
        halves = memory[: 3 * words // 2], memory[3 * words // 2 : 3 * words // 2 * 2]
        self._pairs = _pieces(halves)
        self._turn = 0

    def read(self) -> int:
        """A scalar product of the memory's two halves: of what numpy and BLAS have, it reads
        fastest, by 5 to 20% before reductions of one stream."""
        left, right = self._next(self._pairs)
        np.dot(left, right)
        return left.nbytes + right.nbytes

    def copy(self) -> int:
        """The whole array at once: the C library passes by the cache from some size on."""
        np.copyto(self.a, self.b)
        return self.a.nbytes + self.b.nbytes

    def triad(self) -> int:
        """STREAM's a = b + scalar * c, the scalar being 1: numpy multiplies and adds in two passes.
        Those reach 80% of STREAM on a core that waits for one stream at a time, even with what lies
        between them kept in the cache. The words that move are the same."""
        a, b, c = self._next(self._triads)
        np.add(b, c, out=a)
        return a.nbytes + b.nbytes + c.nbytes

    def _next(self, pieces: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
        self._turn += 1
        return pieces[self._turn % len(pieces)]


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


def _pieces(arrays: tuple[np.ndarray, ...]) -> list[tuple[np.ndarray, ...]]:
    words = _PIECE_BYTES // _WORD_BYTES
    starts = range(0, len(arrays[0]), words)
    return [tuple(array[start : start + words] for array in arrays) for start in starts]
