"""A lab from the first namespace to the last: what `hetero lab` and the tests work with."""

import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from hetero.launch.lab.commands import check_machine
from hetero.launch.lab.lab_file import load_topology
from hetero.launch.lab.limits import check_limits, groups_of_host, machine_controllers, make_groups
from hetero.launch.lab.network import (
    NAMESPACES,
    build_network,
    cable_rates,
    entering,
    interfaces,
    namespace,
    set_cable,
)
from hetero.launch.lab.removal import pids_in_namespaces, remove_lab
from hetero.launch.lab.shaping import parse_rate, rate_text
from hetero.launch.lab.state import locked, read_state, write_state
from hetero.launch.lab.topology import Topology, check_topology


class Lab:
    """Hosts that run commands, and cables whose rate can change while they are in use.

        with Lab(Path("labs/two-hosts.yaml")) as lab:
            lab.run("desktop", ["ping", "-c", "1", "r730"], check=True)

    Entering brings it up, after removing what an earlier one of that name left; leaving kills
    what runs in it and removes it.
    """

    def __init__(self, topology: Topology | Path) -> None:
        """Raises: ConfigError naming the field that is wrong."""
        self.topology = load_topology(topology) if isinstance(topology, Path) else topology
        check_topology(self.topology)

    @classmethod
    def attach(cls, name: str) -> Self:
        """A lab that is up. Raises: HeteroError if it is not."""
        return cls(read_state(name))

    @property
    def name(self) -> str:
        return self.topology.name

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.down()

    def up(self) -> bool:
        """Whether there was one of this name, or a part of one, which it replaced.

        Raises: ConfigError or HeteroError for what this machine lacks. Then nothing is left.
        """
        check_machine()
        controllers = machine_controllers()
        for host in self.topology.hosts:
            check_limits(host, controllers)
        with locked(self.name):
            replaced = remove_lab(self.name)
            try:
                for host in self.topology.hosts:
                    make_groups(namespace(self.name, host.name), host, controllers)
                build_network(self.topology)
                write_state(self.topology)
            except BaseException:
                remove_lab(self.name)
                raise
        return replaced

    def down(self) -> bool:
        """Whether there was anything to remove. Raises: HeteroError if a process won't end."""
        check_machine()
        with locked(self.name):
            return remove_lab(self.name)

    def command(self, host: str, argv: Sequence[str]) -> list[str]:
        """What runs `argv` on `host`: in its cgroups before anything of it runs, and in its
        namespace. The command takes the place of the shell, so its process is the one started.

        Raises: ConfigError for an unknown host.
        """
        self.topology.host(host)
        groups = groups_of_host(namespace(self.name, host), machine_controllers())
        joins = [f"echo $$ > {shlex.quote(str(path / 'cgroup.procs'))}" for path in groups]
        script = " && ".join([*joins, 'exec "$@"'])
        return ["/bin/sh", "-c", script, "sh", *entering(self.name, host), *argv]

    def popen(self, host: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Options are those of `subprocess.Popen`."""
        return subprocess.Popen(self.command(host, argv), **options)

    def run(
        self, host: str, argv: Sequence[str], **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        """Options are those of `subprocess.run`."""
        return subprocess.run(self.command(host, argv), **options)

    def address(self, host: str) -> str:
        return self.topology.host(host).address

    def set_rate(self, a: str, b: str, rate: str) -> None:
        """Of the cable of `a` and `b`, in both directions; plugs it in if it was not.

        Connections live on. Raises: ConfigError for an unknown cable or rate.
        """
        rate_bits_per_s = parse_rate("rate", rate)
        with self._changing():
            cable = self.topology.cable(a, b)
            self.topology = self.topology.replace_rate(cable, rate_bits_per_s)
            set_cable(self.topology, self.topology.cable(a, b), up=True)
            write_state(self.topology)

    def set_down(self, a: str, b: str) -> None:
        """Unplugs a cable: what is on its way is lost, and so is what comes later."""
        with self._changing():
            set_cable(self.topology, self.topology.cable(a, b), up=False)

    def set_up(self, a: str, b: str) -> None:
        """Plugs it in again, at the rate it had."""
        with self._changing():
            set_cable(self.topology, self.topology.cable(a, b), up=True)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Others may have changed or removed it since: what they wrote counts."""
        check_machine()
        with locked(self.name):
            self.topology = read_state(self.name)
            yield

    def status(self) -> dict[str, Any]:
        """What is configured, and what the kernel says of it now.

        Rates are in bits per second. Raises: HeteroError if it is not up.
        """
        with self._changing():
            topology = self.topology
            rates = cable_rates(topology)
        names = interfaces(topology)
        paths = {host.name: NAMESPACES / namespace(self.name, host.name) for host in topology.hosts}
        pids = pids_in_namespaces(list(paths.values()))
        return {
            "name": self.name,
            "hosts": [
                msgspec.structs.asdict(host)
                | {
                    "namespace": paths[host.name].name,
                    "interfaces": {
                        names[cable, host.name]: cable.far_end(host.name)
                        for cable in topology.cables_of(host.name)
                    },
                    "pids": sorted(pids[paths[host.name]]),
                }
                for host in topology.hosts
            ],
            "switches": list(topology.switches),
            "links": [
                {
                    "between": list(cable.between),
                    "up": rates[cable] is not None,
                    "rate": rate_text(rates[cable] or cable.rate_bits_per_s),
                    "rate_bits_per_s": rates[cable] or cable.rate_bits_per_s,
                    "mtu": cable.mtu,
                }
                for cable in topology.cables
            ],
        }
