"""How large the last-level caches of some cores are, from Linux's sysfs."""

from collections.abc import Iterable
from pathlib import Path

_SYSTEM = Path("/sys/devices/system/cpu")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}

# Where the system does not say: as large as a desktop's, or as one socket's of ten years ago.
_USUAL_BYTES = 32 * 2**20


def last_level_bytes(cpus: Iterable[int], system: Path = _SYSTEM) -> int:
    """Together; a cache that several share counts once."""
    caches = {}
    for cpu in cpus:
        levels = []
        for index in (system / f"cpu{cpu}" / "cache").glob("index[0-9]*"):
            try:
                level = int((index / "level").read_text())
                size = (index / "size").read_text().strip()
                sharers = (index / "shared_cpu_list").read_text().strip()
                num_bytes = int(size.rstrip("KMG")) * _UNITS.get(size[-1:], 1)
            except (OSError, ValueError):
                continue
            levels.append((level, num_bytes, sharers))
        if levels:
            level, num_bytes, sharers = max(levels)
            caches[level, sharers] = num_bytes
    return sum(caches.values()) or _USUAL_BYTES
