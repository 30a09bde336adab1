"""What the load generator itself took, which is not the server's: processor time and lateness."""

import time
from collections.abc import Sequence

import msgspec
import numpy as np

from hetero.experiment.load.record import RequestRecord


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """cpu_s: of this process, all threads. late: how far behind its schedule it sent."""

    cpu_s: float
    seconds: float
    cores: float
    cpu_s_per_token: float | None
    late_p50_s: float
    late_p95_s: float
    late_max_s: float


class Overhead:
    """Of the time from now to `end`."""

    def __init__(self) -> None:
        self._cpu_s = time.process_time()
        self._began_s = time.perf_counter()

    def end(self, records: Sequence[RequestRecord]) -> Share:
        cpu_s = time.process_time() - self._cpu_s
        seconds = time.perf_counter() - self._began_s
        num_tokens = sum(sum(record.piece_tokens) for record in records)
        late_s = np.array([record.late_s for record in records] or [0.0])
        return Share(
            cpu_s=cpu_s,
            seconds=seconds,
            cores=cpu_s / seconds,
            cpu_s_per_token=cpu_s / num_tokens if num_tokens else None,
            late_p50_s=float(np.percentile(late_s, 50)),
            late_p95_s=float(np.percentile(late_s, 95)),
            late_max_s=float(late_s.max()),
        )
