"""Which CPUs a process runs on."""

import os
from collections.abc import Sequence

from hetero.errors import ConfigError


def run_on(cpus: Sequence[int]) -> None:
    """This thread, and all that are made from now on. Before anything is allocated: memory lies
    where the thread that touches it first runs. None: as the system likes.

    Raises: ConfigError for CPUs that this process may not use.
    """
    if not cpus:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise ConfigError("cpus: need Linux to choose them, have another system; leave them out")
    usable = os.sched_getaffinity(0)
    missing = sorted(set(cpus) - usable)
    if missing:
        raise ConfigError(
            f"cpus: need some of {_ranges(sorted(usable))}, have {_ranges(missing)}, which this "
            "process may not use; measure again with `hetero profile node`"
        )
    os.sched_setaffinity(0, cpus)


def _ranges(numbers: Sequence[int]) -> str:
    """1, 2, 3, 7 -> "1-3,7"."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
