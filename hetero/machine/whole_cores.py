"""Logical CPUs that share no core with another: one of each physical core."""

import os
from collections.abc import Collection
from pathlib import Path

from hetero.machine.files import read_text, to_cpus

_THIS_MACHINE = Path("/")


def whole_cores(root: Path = _THIS_MACHINE) -> list[int]:
    """Of those this process may use."""
    if hasattr(os, "sched_getaffinity"):
        usable = os.sched_getaffinity(0)
    else:
        usable = set(range(os.cpu_count() or 1))
    return [cpu for cpu in sorted(usable) if cpu == first_sibling(root, cpu, usable)]


def first_sibling(root: Path, cpu: int, usable: Collection[int]) -> int:
    """The lowest usable logical CPU of the same core."""
    folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    # Before Linux 5.2 the list had its old name only.
    text = read_text(folder / "core_cpus_list") or read_text(folder / "thread_siblings_list")
    return min((other for other in to_cpus(text) if other in usable), default=cpu)
