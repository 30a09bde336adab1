"""The settings a profile holds for: change one, and the figures may be others'.

All of them are readable without root, so that who asks makes no difference.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from hetero.machine.files import matching, read_text
from hetero.machine.huge_pages import transparent_huge_pages
from hetero.profile.facts.cpu import governor
from hetero.profile.facts.memory import huge_pages
from hetero.profile.facts.numa import usable_facts
from hetero.profile.facts.probes import Probes, no_probes, probes_of_this_machine
from hetero.profile.facts.rapl import power_limit_watts

_THIS_MACHINE = Path("/")
# OpenMP's runtime, which llama.cpp's and torch's threads belong to, is set by these.
_VARIABLES = "OMP_"
_ON_OFF = {"0": "off", "1": "on"}


def settings_now(
    root: Path = _THIS_MACHINE,
    environment: Mapping[str, str] | None = None,
    probes: Probes | None = None,
) -> dict[str, str | None]:
    """None: could not be seen. environment: None: this process's."""
    if probes is None:
        probes = probes_of_this_machine() if root == _THIS_MACHINE else no_probes()
    usable, _ = usable_facts(root, probes.basics)
    watts = power_limit_watts(root)
    quota = usable.cpu_quota
    settings = {
        "governor": governor(root),
        "transparent_huge_pages": transparent_huge_pages(root),
        "huge_pages": _text(huge_pages(root)),
        "power_limit_watts": None if watts is None else f"{watts:g}",
        "boost": _boost(root),
        "smt": _ON_OFF.get(read_text(root / "sys/devices/system/cpu/smt/active") or ""),
        "usable_cpus": _text(len(usable.cpus) or None),
        "cpu_quota": "unlimited" if quota is None else f"{quota:g}",
        "kernel": read_text(root / "proc/sys/kernel/osrelease") or probes.basics.system or None,
    }
    given = os.environ if environment is None else environment
    return settings | {
        name: value for name, value in sorted(given.items()) if name.startswith(_VARIABLES)
    }


def stale_because(then: Mapping[str, str | None], now: Mapping[str, str | None]) -> list[str]:
    """One "which: was X, is Y" for each that differs. A setting that only one version of hetero
    looks at says nothing; an environment variable that is not there does."""
    return [
        f"{name}: was {_word(name, then)}, is {_word(name, now)}"
        for name in dict.fromkeys([*then, *now])
        if then.get(name) != now.get(name)
        if name.startswith(_VARIABLES) or (name in then and name in now)
    ]


def _word(name: str, settings: Mapping[str, str | None]) -> str:
    value = settings.get(name)
    if value is not None:
        return value
    return "not set" if name.startswith(_VARIABLES) else "unseen"


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)


def _boost(root: Path) -> str | None:
    """Intel's driver has a switch that means the contrary; others one for all, or one each."""
    cpu = root / "sys/devices/system/cpu"
    no_turbo = read_text(cpu / "intel_pstate/no_turbo")
    if no_turbo is not None:
        return {"0": "on", "1": "off"}.get(no_turbo)
    switches = [cpu / "cpufreq/boost", *matching(cpu, "cpufreq/policy*/boost")]
    states = {_ON_OFF[text] for path in switches if (text := read_text(path)) in _ON_OFF}
    return ", ".join(sorted(states)) or None
