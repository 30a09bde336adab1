"""What UCX really carries bytes over, as it says itself: the lanes that it logs for every kind of
endpoint that it makes.

    <agent> intra-node cfg#1 rma(sysv/memory posix/memory)  am(sysv/memory cma/memory)

There is no call for it that NIXL hands through. UCX logs a configuration once, not once per peer:
what is known is what any peer so far was reached by.
"""

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hetero.messages import TransportName

_SHARED_MEMORY = {"sysv", "posix", "cma", "xpmem", "knem"}

# Lanes that no row takes: for atomics, for signs of life, for making connections.
_NO_ROWS = re.compile(r"amo|ka|cm")

_GROUP = re.compile(r"(\w+)\(([^)]*)\)")
_LOG_BYTES = 2**20


class UcxLog:
    """UCX's log of this process, in memory."""

    def __init__(self) -> None:
        self._file = os.memfd_create("ucx log")
        self._num_told = 0

    @contextmanager
    def capture(self) -> Iterator[None]:
        """UCX is loaded within, and takes its settings then: from the environment, and once."""
        before = {name: os.environ.get(name) for name in ("UCX_LOG_FILE", "UCX_LOG_LEVEL")}
        os.environ["UCX_LOG_FILE"] = f"/proc/self/fd/{self._file}"
        os.environ.setdefault("UCX_LOG_LEVEL", "info")
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def lanes(self, agent: str) -> set[str]:
        """As transport/device: `rc_mlx5/mlx5_0:1`, `tcp/eth0`."""
        return find_lanes(self._text(), agent)

    def complaints(self) -> list[str]:
        """What UCX said was wrong, and was not asked for before."""
        bad = [
            line for line in self._text().splitlines() if re.search(r" (WARN|ERROR|FATAL) ", line)
        ]
        new = [line.split("UCX", 1)[-1].strip() for line in bad[self._num_told :]]
        self._num_told = len(bad)
        return new

    def _text(self) -> str:
        library = re.search(r"/\S*/libucs[-.]\S*", Path("/proc/self/maps").read_text())
        if library is not None:
            ctypes.CDLL(library[0]).ucs_log_flush()
        return os.pread(self._file, _LOG_BYTES, 0).decode(errors="replace")


def find_lanes(log: str, agent: str) -> set[str]:
    """Lanes between this agent and others that rows may take."""
    lanes = set()
    for line in log.splitlines():
        _, found, configuration = line.partition(f" {agent} ")
        if found and re.match(r"int(ra|er)-node cfg#", configuration):
            for group, names in _GROUP.findall(configuration):
                if not _NO_ROWS.match(group):
                    lanes.update(names.split())
    return lanes


def lane_transport(lane: str) -> TransportName:
    name = lane.partition("/")[0]
    if name == "tcp":
        return "nixl-tcp"
    return "nixl-shm" if name in _SHARED_MEMORY else "nixl-rdma"
