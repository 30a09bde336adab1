"""NUMA nodes, and the part of the machine that this process may use."""

import re
from pathlib import Path

from hetero.machine.cgroup import cgroup_limits
from hetero.machine.files import colon_fields, matching, read_text, to_cpus, to_int
from hetero.profile.facts.cpu import online_cpus
from hetero.profile.facts.memory import memory_bytes
from hetero.profile.facts.probes import Basics
from hetero.profile.facts.report import NumaNode, Usable


def numa_facts(root: Path, basics: Basics) -> tuple[list[NumaNode], list[str]]:
    """One node where the kernel knows of none: the whole machine."""
    nodes = []
    for folder in matching(root / "sys/devices/system/node", "node[0-9]*"):
        number = to_int(folder.name.removeprefix("node"))
        if number is None:
            continue
        total = re.search(r"MemTotal:\s+([0-9]{1,15}) kB", read_text(folder / "meminfo") or "")
        cpus = to_cpus(read_text(folder / "cpulist"))
        num_bytes = int(total[1]) * 1024 if total else 0
        nodes.append(NumaNode(node=number, cpus=cpus, memory_bytes=num_bytes))
    if nodes:
        return nodes, []
    all_cpus = online_cpus(root) or list(range(basics.logical_cores))
    if not all_cpus:
        return [], ["NUMA nodes: /sys/devices/system/node is not there; numactl --hardware"]
    whole = NumaNode(node=0, cpus=all_cpus, memory_bytes=memory_bytes(root, basics))
    return [whole], []


def usable_facts(root: Path, basics: Basics) -> tuple[Usable, list[str]]:
    unseen = []
    status = colon_fields(read_text(root / "proc/self/status"))
    cpus = to_cpus(status[0].get("Cpus_allowed_list"))
    if not cpus:
        cpus = online_cpus(root) or list(range(basics.logical_cores))
        unseen.append("usable CPUs: /proc/self/status names none, all are assumed; taskset -p $$")
    if read_text(root / "proc/self/cgroup") is None:
        unseen.append(
            "limits of a container: /proc/self/cgroup is not there; cat /sys/fs/cgroup/cpu.max"
        )
    limits = cgroup_limits(root)
    total_bytes = memory_bytes(root, basics)
    usable = Usable(
        cpus=cpus,
        cpu_quota=limits.cpu_quota,
        # A group may be allowed more than there is.
        memory_bytes=min(
            total_bytes or limits.memory_bytes or 0, limits.memory_bytes or total_bytes
        ),
    )
    return usable, unseen
