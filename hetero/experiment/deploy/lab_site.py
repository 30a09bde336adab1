"""The hosts of a recipe as a lab: a namespace and cores each, a cable between every two.

The front has a cable to each host, fast enough never to count. A host has one address, and who has
a cable to it takes that: KV takes the cable of its two hosts, control and HTTP the front's.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from types import TracebackType
from typing import Any, Self

import psutil

from hetero.errors import ConfigError, PlanError
from hetero.experiment.deploy.site import FRONT, Site
from hetero.experiment.recipe.recipe import Lab as LabRecipe
from hetero.launch.lab.lab import Lab
from hetero.launch.lab.lab_file import parse_topology
from hetero.launch.lab.limits import machine_controllers
from hetero.launch.lab.state import lab_names
from hetero.launch.lab.topology import Topology
from hetero.machine.files import to_cpus
from hetero.machine.whole_cores import one_of_each_core, usable_cpus, whole_cores

_FRONT_RATE = "40gbit"

# Of the process that made it, so that runs don't meet and what a killed one left is known.
_NAME = re.compile(r"run-(\d+)")


class LabSite(Site):
    def __init__(self, lab: LabRecipe) -> None:
        """Raises: ConfigError naming the field, PlanError for too few cores."""
        self._hosts = tuple(lab.hosts)
        self._lab = Lab(lab_topology(f"run-{os.getpid()}", lab, whole_cores()))

    def __enter__(self) -> Self:
        remove_dead_labs()
        self._lab.up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lab.down()

    @property
    def hosts(self) -> tuple[str, ...]:
        return self._hosts

    @property
    def cpus(self) -> list[int]:
        given = [host.cpus for host in self._lab.topology.hosts if host.name != FRONT]
        if None in given:
            return usable_cpus()
        return one_of_each_core({cpu for cpus in given for cpu in to_cpus(cpus)})

    def address(self, host: str) -> str:
        return self._lab.address(host)

    def set_link(self, rate: str) -> None:
        for a, b in combinations(self._hosts, 2):
            self._lab.set_rate(a, b, rate)

    def shares_cores(self, num_threads: int) -> bool:
        return True  # the front has no cores of its own

    def _enter(self, host: str, argv: Sequence[str]) -> list[str]:
        return self._lab.command(host, argv)


def lab_topology(name: str, lab: LabRecipe, cores: Sequence[Sequence[int]]) -> Topology:
    """Each host that wants any gets one of `cores`, in the recipe's order.

    Raises: ConfigError naming the field, PlanError for too few cores.
    """
    if FRONT in lab.hosts:
        raise ConfigError(
            f"cluster.lab.hosts: {FRONT!r} is where router and load generator run; choose another "
            "name"
        )
    cpus = _host_cpus(lab, cores)
    hosts: dict[str, Mapping[str, Any] | None] = {
        host: {"cpus": cpus[host], "quota": limits.quota, "memory": limits.memory}
        for host, limits in lab.hosts.items()
    }
    # Router and load generator get no core that the hosts don't have: a candidate on one host would
    # otherwise have a second one for free.
    front = None if None in cpus.values() else {"cpus": ",".join(filter(None, cpus.values()))}
    links = [
        {"between": pair, "rate": lab.rate, "mtu": lab.mtu} for pair in combinations(lab.hosts, 2)
    ]
    links += [{"between": [FRONT, host], "rate": _FRONT_RATE} for host in lab.hosts]
    try:
        # JSON is YAML.
        return parse_topology(
            json.dumps({"name": name, "hosts": hosts | {FRONT: front}, "links": links})
        )
    except ConfigError as error:
        raise ConfigError(f"cluster.lab: {error}") from None


def _host_cpus(lab: LabRecipe, cores: Sequence[Sequence[int]]) -> dict[str, str | None]:
    said = {host: limits.cpus for host, limits in lab.hosts.items()}
    taken = {
        cpu for cpus in said.values() if cpus not in (None, "any") for cpu in to_cpus(cpus) or ()
    }
    free = [core for core in cores if not taken & set(core)]
    wanting = [host for host, cpus in said.items() if cpus == "any"]
    if len(wanting) > len(free):
        raise PlanError(
            f"cluster.lab.hosts: need a core of this machine for each of {', '.join(wanting)}, "
            f"have {len(free)} free of {len(cores)}; take a larger machine, fewer hosts, or let "
            'some share one: cpus: "0" and a quota of 0.5 each'
        )
    given = {host: ",".join(map(str, core)) for host, core in zip(wanting, free, strict=False)}
    return said | given


def remove_dead_labs() -> None:
    """Labs whose run was killed."""
    for name in lab_names(machine_controllers()):
        match = _NAME.fullmatch(name)
        if match and not psutil.pid_exists(int(match[1])):
            Lab(parse_topology(json.dumps({"name": name, "hosts": {FRONT: None}}))).down()
