"""How fast this machine's memory is, to one core."""

import time
from collections.abc import Callable
from statistics import median

import numpy as np

# Beyond any last-level cache, so that it is memory that is measured.
_CEILING_BYTES = 512 * 2**20


def memory_ceilings(*, quick: bool) -> dict[str, float]:
    """Bytes per second of one core: a copy (as bytes copied), and reading alone (a BLAS dot)."""
    source = np.ones((_CEILING_BYTES // 64 if quick else _CEILING_BYTES) // 4, np.float32)
    target = np.zeros_like(source)
    return {
        "memcpy_bytes_per_s": source.nbytes / _median_s(lambda: np.copyto(target, source)),
        "read_bytes_per_s": source.nbytes / _median_s(lambda: np.dot(source, source)),
    }


def _median_s(call: Callable[[], object]) -> float:
    call()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return median(seconds)
