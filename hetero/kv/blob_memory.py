"""Memory for staging blobs, used again: the kernel clears what it gives out anew, and at 10 Gbit/s
that was a fifth of what a sink did."""

import ctypes
import mmap
import threading
import time
import weakref
from collections import deque

import numpy as np
import numpy.typing as npt

_HUGE_PAGE_BYTES = 2 * 2**20


class BlobMemory:
    """Gives out arrays, and takes each back when nothing refers to it any more: neither its holder
    nor a thread that still writes to a part of it. From any thread."""

    def __init__(self, keep_bytes: int) -> None:
        """keep_bytes: of what is free, so much is kept; the rest goes back to the system."""
        self._keep_bytes = _padded(keep_bytes)
        self._returned: deque[mmap.mmap] = deque()  # not looked at yet
        self._free: list[mmap.mmap] = []  # the one that came back last is last
        self._lock = threading.Lock()
        self._taken_at = time.monotonic()

    def take(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """(num_bytes,), of any content. Raises: MemoryError."""
        memory = self._reuse(num_bytes) or _map(num_bytes)
        owner = (ctypes.c_uint8 * num_bytes).from_buffer(memory)
        weakref.finalize(owner, self._give_back, memory).atexit = False
        return np.frombuffer(memoryview(owner), np.uint8)

    def rest(self, idle_s: float) -> None:
        """Keep nothing, if nothing was taken for so long."""
        if self._free and time.monotonic() > self._taken_at + idle_s:
            with self._lock:
                self._free.clear()

    def _reuse(self, num_bytes: int) -> mmap.mmap | None:
        """The smallest piece that is large enough, unless most of it would lie idle."""
        self._sort_in()
        self._taken_at = time.monotonic()
        with self._lock:
            fitting = [one for one in self._free if num_bytes <= len(one) <= _most(num_bytes)]
            if not fitting:
                return None
            best = min(fitting, key=len)
            self._free.remove(best)
            return best

    def _give_back(self, memory: mmap.mmap) -> None:
        """Runs wherever garbage is collected, also in the middle of the methods above: so it waits
        for no lock."""
        self._returned.append(memory)
        self._sort_in()

    def _sort_in(self) -> None:
        """Unless somebody is at it, who then will, or the next who takes."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            while self._returned:
                self._free.append(self._returned.popleft())
            while sum(len(one) for one in self._free) > self._keep_bytes:
                del self._free[0]
        finally:
            self._lock.release()


def _map(num_bytes: int) -> mmap.mmap:
    try:
        memory = mmap.mmap(-1, _padded(num_bytes))
    except (OSError, OverflowError) as error:
        raise MemoryError(f"need {num_bytes} bytes: {error}") from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _most(num_bytes: int) -> int:
    return 2 * num_bytes + _HUGE_PAGE_BYTES


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
