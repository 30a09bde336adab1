"""Mains or battery, and whether the processor's own meter is readable."""

from pathlib import Path

from hetero.machine.files import count, matching, read_int, read_text, why_unreadable
from hetero.profile.facts.probes import Basics
from hetero.profile.facts.rapl import package_domains
from hetero.profile.facts.report import Power

# Kernels keep the meter to root. Then `hetero` need not run as root, with root's files and paths.
_LET_READ = "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"


def power_facts(root: Path, basics: Basics) -> tuple[Power, list[str]]:
    meters = [domain / "energy_uj" for domain in package_domains(root)]
    unreadable = [path for path in meters if count(path) is None]
    has_rapl = bool(meters) and not unreadable
    power = Power(on_battery=_on_battery(root, basics), has_rapl=has_rapl)
    if has_rapl:
        return power, []
    if unreadable:
        path = unreadable[0]
        why = f"{path.parent.name}/energy_uj {why_unreadable(path)}"
        return power, [f"package power: RAPL's {why}; {_LET_READ} (until the next boot)"]
    return power, [
        "package power: no RAPL (a virtual machine, or no driver); sudo modprobe intel_rapl_msr"
    ]


def _on_battery(root: Path, basics: Basics) -> bool | None:
    supplies = matching(root / "sys/class/power_supply", "*")
    batteries = [
        supply
        for supply in supplies
        # A mouse's battery has the scope "Device".
        if read_text(supply / "type") == "Battery" and read_text(supply / "scope") != "Device"
    ]
    if not batteries:
        return basics.on_battery
    plugs = [
        online
        for supply in supplies
        if read_text(supply / "type") in ("Mains", "USB")
        if (online := read_int(supply / "online")) is not None
    ]
    if plugs:
        return not any(plugs)
    return any(read_text(battery / "status") == "Discharging" for battery in batteries)
