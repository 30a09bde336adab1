"""How much memory is free for this process now: of the machine, and of its control groups."""

from pathlib import Path

import psutil

from hetero.machine.cgroup import cgroup_free_bytes
from hetero.machine.files import colon_fields, read_text, to_int

_THIS_MACHINE = Path("/")


def free_memory_bytes(root: Path = _THIS_MACHINE) -> int:
    """Page cache counts as free."""
    fields = colon_fields(read_text(root / "proc/meminfo"))[0]
    kib = to_int(fields.get("MemAvailable", "").removesuffix(" kB"))
    # Not there before Linux 3.14, and on other systems.
    available = psutil.virtual_memory().available if kib is None else 1024 * kib
    in_group = cgroup_free_bytes(root)
    return available if in_group is None else min(available, in_group)
