"""Memory: its size and pages from files, its modules from the firmware's table (dmidecode)."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from hetero.machine.files import colon_fields, read_text, to_int
from hetero.machine.huge_pages import transparent_huge_pages
from hetero.profile.facts.channels import count_channels
from hetero.profile.facts.cpu import cpu_model
from hetero.profile.facts.dimms import Module, modules_of
from hetero.profile.facts.probes import Basics, Probes
from hetero.profile.facts.report import Memory

_MODULES = "memory modules, type, speed and channels"
_BY_HAND = "sudo dmidecode -t memory"


def memory_facts(root: Path, probes: Probes) -> tuple[Memory, list[str]]:
    slots, unseen = _slots(probes.run)
    modules = [slot for slot in slots if slot.num_bytes]
    kinds = sorted({module.kind for module in modules if module.kind})
    speeds = [module.mega_transfers for module in modules if module.mega_transfers]
    channels = count_channels(slots, cpu_model(root, probes.basics))
    if modules:
        unseen += _unseen_of_modules(kinds, speeds, channels)
    num_bytes = memory_bytes(root, probes.basics)
    if not num_bytes:
        unseen.append("memory size: /proc/meminfo is not there; free -b")
    huge_page_kib = _meminfo(root, "Hugepagesize")
    thp = transparent_huge_pages(root)
    if thp is None:
        unseen.append(
            "transparent huge pages: the kernel has none; "
            "cat /sys/kernel/mm/transparent_hugepage/enabled"
        )
    memory = Memory(
        num_bytes=num_bytes,
        channels=channels,
        modules=len(modules) or None,
        kind=", ".join(kinds) or None,
        mega_transfers=min(speeds, default=None),  # all run at the slowest one's
        huge_pages=huge_pages(root) or 0,
        huge_page_bytes=huge_page_kib * 1024 if huge_page_kib else None,
        transparent_huge_pages=thp,
    )
    return memory, unseen


def memory_bytes(root: Path, basics: Basics) -> int:
    """0: could not be seen."""
    return (_meminfo(root, "MemTotal") or 0) * 1024 or basics.memory_bytes


def huge_pages(root: Path) -> int | None:
    return _meminfo(root, "HugePages_Total")


def _meminfo(root: Path, name: str) -> int | None:
    fields = colon_fields(read_text(root / "proc/meminfo"))[0]
    number = to_int(fields.get(name, "").removesuffix(" kB"))
    return number if number is not None and number >= 0 else None


def _slots(run: Callable[[list[str]], str]) -> tuple[list[Module], list[str]]:
    try:
        slots = modules_of(run(["dmidecode", "-t", "memory"]))
    except FileNotFoundError:
        return [], [f"{_MODULES}: dmidecode is not installed; sudo apt install dmidecode"]
    except subprocess.CalledProcessError as error:
        said = f"{error.stderr or ''}\n{error.output or ''}".strip()
        if "permission denied" in said.lower():
            return [], [f"{_MODULES}: dmidecode needs root; {_BY_HAND}"]
        last_line = said.splitlines()[-1] if said else f"exit status {error.returncode}"
        return [], [f"{_MODULES}: dmidecode failed ({last_line}); {_BY_HAND}, on the host"]
    except (OSError, subprocess.SubprocessError) as error:
        return [], [f"{_MODULES}: dmidecode failed ({error}); {_BY_HAND}"]
    if not any(slot.num_bytes for slot in slots):
        return [], [
            f"{_MODULES}: the firmware lists none (a container or a virtual machine?); "
            f"{_BY_HAND}, on the host"
        ]
    return slots, []


def _unseen_of_modules(kinds: list[str], speeds: list[int], channels: int | None) -> list[str]:
    lines = []
    if not kinds:
        lines.append(f"memory type: the firmware names none; {_BY_HAND}")
    if not speeds:
        lines.append(f"memory speed: the firmware names none; {_BY_HAND}")
    if channels is None:
        lines.append(f"memory channels: the slots' names do not tell; {_BY_HAND}, and the manual")
    return lines
