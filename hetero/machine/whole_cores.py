"""Which logical CPUs a process may use, and which of them are one physical core."""

import os
from collections.abc import Collection
from pathlib import Path

from hetero.machine.files import read_text, to_cpus

_THIS_MACHINE = Path("/")


def usable_cpus() -> list[int]:
    """None on a system that binds no process to a CPU."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def whole_cores(root: Path = _THIS_MACHINE) -> list[list[int]]:
    """The CPUs of each core all of whose CPUs this process may use, lowest first."""
    usable = usable_cpus()
    cores = {tuple(_siblings(root, cpu)) for cpu in usable}
    return [list(core) for core in sorted(cores) if set(core) <= set(usable)]


def one_of_each_core(cpus: Collection[int], root: Path = _THIS_MACHINE) -> list[int]:
    return [cpu for cpu in sorted(cpus) if cpu == first_sibling(root, cpu, cpus)]


def first_sibling(root: Path, cpu: int, usable: Collection[int]) -> int:
    """The lowest usable logical CPU of the same core."""
    return min((other for other in _siblings(root, cpu) if other in usable), default=cpu)


def _siblings(root: Path, cpu: int) -> list[int]:
    """All CPUs of its core, itself among them, lowest first."""
    folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    # Before Linux 5.2 the list had its old name only.
    text = read_text(folder / "core_cpus_list") or read_text(folder / "thread_siblings_list")
    return to_cpus(text) or [cpu]
