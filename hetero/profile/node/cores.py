"""Which CPUs an engine should run on: one of each physical core, of those this process may use."""

from pathlib import Path

from hetero.machine.whole_cores import first_sibling
from hetero.profile.facts.report import Facts

_THIS_MACHINE = Path("/")


def engine_cpus(facts: Facts, root: Path = _THIS_MACHINE) -> dict[int, list[int]]:
    """NUMA node -> CPUs; nodes without any are left out. A container's quota counts as so many
    CPUs: more threads than that would wait for each other at every barrier."""
    usable = set(facts.usable.cpus)
    chosen: dict[int, list[int]] = {}
    for node in facts.numa:
        cpus = [cpu for cpu in node.cpus if cpu in usable]
        first = [cpu for cpu in cpus if cpu == first_sibling(root, cpu, usable)]
        if first:
            chosen[node.node] = first
    if not chosen:
        chosen = {0: sorted(usable) or [0]}
    quota = facts.usable.cpu_quota
    if quota is not None:
        _keep(chosen, max(1, int(quota)))
    return chosen


def _keep(chosen: dict[int, list[int]], num_cpus: int) -> None:
    """Of the first nodes, so that what is left has its memory near."""
    for node, cpus in list(chosen.items()):
        chosen[node] = cpus[:num_cpus]
        num_cpus -= len(chosen[node])
        if not chosen[node]:
            del chosen[node]
