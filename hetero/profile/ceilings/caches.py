"""How large the last-level caches of some cores are, from Linux's sysfs."""

from collections.abc import Iterable
from pathlib import Path

from hetero.machine.files import matching, read_text
from hetero.profile.facts.cpu import read_cache

_SYSTEM = Path("/sys/devices/system/cpu")

# Where the system does not say: as large as a desktop's, or as one socket's of ten years ago.
_USUAL_BYTES = 32 * 2**20


def last_level_bytes(cpus: Iterable[int], system: Path = _SYSTEM) -> int:
    """Together; a cache that several share counts once."""
    caches = {}
    for cpu in cpus:
        found = [
            (cache.level, cache.num_bytes, read_text(index / "shared_cpu_list") or str(cpu))
            for index in matching(system / f"cpu{cpu}" / "cache", "index[0-9]*")
            if (cache := read_cache(index))
        ]
        if found:
            level, num_bytes, sharers = max(found)
            caches[level, sharers] = num_bytes
    return sum(caches.values()) or _USUAL_BYTES
