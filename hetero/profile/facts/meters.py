"""The processor's clock, energy and throttling, to be read again and again through a long run.

None: can't be read. A reading is a value; what happened between two of them is a function of both.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hetero.machine.files import colon_fields, count, matching, read_text, to_int
from hetero.profile.facts.rapl import package_domains

_THIS_MACHINE = Path("/")
_THROTTLES = ("core", "package")


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Counters of the packages, in microjoules, each with the value after which it starts anew."""

    read_at_s: float  # on the monotonic clock
    packages: dict[str, tuple[int, int]]


def cpu_mhz(cpus: Sequence[int] | None = None, root: Path = _THIS_MACHINE) -> float | None:
    """Mean over `cpus`; None: over all. Idle ones bring it down."""
    folder = root / "sys/devices/system/cpu"
    wanted = [folder / f"cpu{cpu}" for cpu in cpus or ()] or matching(folder, "cpu[0-9]*")
    khz = [count(path / "cpufreq/scaling_cur_freq") for path in wanted]
    mhz = [number / 1e3 for number in khz if number]
    if not mhz:  # without cpufreq the processor's own word, of x86 alone
        for block in colon_fields(read_text(root / "proc/cpuinfo")):
            shown = re.fullmatch(r"[0-9]{1,5}(\.[0-9]+)?", block.get("cpu MHz", ""))
            if shown and (not cpus or to_int(block.get("processor")) in cpus):
                mhz.append(float(shown[0]))
    return sum(mhz) / len(mhz) if mhz else None


def read_energy(root: Path = _THIS_MACHINE, now_s: float | None = None) -> Energy | None:
    """Of all packages, or None: with one missing the sum would be wrong."""
    domains = package_domains(root)
    packages = {}
    for domain in domains:
        microjoules, top = count(domain / "energy_uj"), count(domain / "max_energy_range_uj")
        if microjoules is None or top is None:
            return None
        packages[domain.name] = (microjoules, top)
    if not packages:
        return None
    return Energy(
        read_at_s=time.monotonic() if now_s is None else now_s,
        packages=packages,
    )


def watts_between(first: Energy | None, last: Energy | None) -> float | None:
    """Mean of all packages together. A counter may have started anew once in between: read more
    often than every few minutes (262 kJ, the usual range, are 15 minutes at 290 W)."""
    if first is None or last is None or first.packages.keys() != last.packages.keys():
        return None
    seconds = last.read_at_s - first.read_at_s
    if seconds <= 0:
        return None
    microjoules = 0
    for name, (end, top) in last.packages.items():
        begin, _ = first.packages[name]
        microjoules += end - begin if end >= begin else end - begin + top
    return microjoules * 1e-6 / seconds


def throttle_counts(root: Path = _THIS_MACHINE) -> dict[str, int] | None:
    """How often heat slowed cores and packages since the system started (Intel).

    A core's threads have one counter, and so have a package's: the highest of a package's cores
    counts, and packages are added up.
    """
    counts: dict[str, dict[str, int]] = {name: {} for name in _THROTTLES}
    for cpu in matching(root / "sys/devices/system/cpu", "cpu[0-9]*"):
        package = read_text(cpu / "topology/physical_package_id") or "0"
        for name, highest in counts.items():
            number = count(cpu / f"thermal_throttle/{name}_throttle_count")
            if number is not None:
                highest[package] = max(highest.get(package, 0), number)
    return {name: sum(found.values()) for name, found in counts.items() if found} or None


def throttled_between(first: dict[str, int] | None, last: dict[str, int] | None) -> list[str]:
    """In words, one for each kind that went up; nothing where nothing can be read."""
    return [
        f"{name} slowed by heat {number - (first or {})[name]} times"
        for name, number in (last or {}).items()
        if number > (first or {}).get(name, number)
    ]
