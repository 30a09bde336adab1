"""What a lab consists of: hosts, switches, and the cables between them. Checked, and no I/O.

Everything is a cable with two ends. Between two hosts it is a direct connection, between a host and
a switch that host's port, between two switches an uplink that the hosts behind them share.
"""

import ipaddress
import re
from collections.abc import Iterator

import msgspec

from hetero.errors import ConfigError

# Letters that name a host, a file and a cgroup alike. Dots are the separator between a lab's name
# and a host's, so that lab `a` is never taken for a part of lab `a-b`.
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")

# IPv6's smallest, and the largest that homelab switches take.
_MTU_MIN, _MTU_MAX = 1280, 9216


class Host(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    address: str
    cpus: str | None = None  # a cpuset list: "0-3,8"
    quota: float | None = None  # CPU seconds per second
    memory_bytes: int | None = None


class Cable(msgspec.Struct, frozen=True, kw_only=True):
    """Full duplex: the rate holds in each direction."""

    between: tuple[str, str]
    rate_bits_per_s: int
    mtu: int = 1500

    @property
    def text(self) -> str:
        return " - ".join(self.between)

    def far_end(self, node: str) -> str:
        return self.between[1 - self.between.index(node)]


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    hosts: tuple[Host, ...]
    switches: tuple[str, ...]
    cables: tuple[Cable, ...]

    def host(self, name: str) -> Host:
        """Raises: ConfigError naming the hosts there are."""
        for host in self.hosts:
            if host.name == name:
                return host
        have = ", ".join(host.name for host in self.hosts)
        raise ConfigError(f"host {name!r}: lab {self.name!r} has the hosts {have}")

    def cable(self, a: str, b: str) -> Cable:
        """Raises: ConfigError naming the cables there are."""
        for cable in self.cables:
            if set(cable.between) == {a, b}:
                return cable
        have = ", ".join(cable.text for cable in self.cables) or "none"
        raise ConfigError(f"link {a} - {b}: lab {self.name!r} has the links {have}")

    def cables_of(self, node: str) -> Iterator[Cable]:
        return (cable for cable in self.cables if node in cable.between)

    def network(self, switch: str) -> set[str]:
        """The switches, hosts among them, that frames entering `switch` can reach."""
        found, to_visit = {switch}, [switch]
        while to_visit:
            for cable in self.cables_of(to_visit.pop()):
                for node in set(cable.between) - found:
                    found.add(node)
                    if node in self.switches:
                        to_visit.append(node)
        return found

    def neighbours(self, cable: Cable, host: str) -> list[Host]:
        """Whom `host` can talk to over `cable`: the host at its other end, or a switch's."""
        far = cable.far_end(host)
        reached = self.network(far) if far in self.switches else {far}
        return [other for other in self.hosts if other.name in reached - {host}]

    def replace_rate(self, changed: Cable, rate_bits_per_s: int) -> "Topology":
        cables = tuple(
            msgspec.structs.replace(cable, rate_bits_per_s=rate_bits_per_s)
            if cable is changed
            else cable
            for cable in self.cables
        )
        return msgspec.structs.replace(self, cables=cables)


def check_topology(topology: Topology) -> None:
    """Raises: ConfigError naming the field that is wrong."""
    check_name("name", topology.name)
    _check_nodes(topology)
    _check_addresses(topology)
    _check_cables(topology)
    _check_networks(topology)


def check_name(field: str, name: str) -> None:
    if not _NAME.fullmatch(name) or name == "localhost":
        raise ConfigError(
            f"{field}: need a name of at most 32 lower-case letters, digits and dashes, "
            f"have {name!r}"
        )


def _check_nodes(topology: Topology) -> None:
    if not topology.hosts:
        raise ConfigError("hosts: need one at least, have none")
    seen = set()
    for host in topology.hosts:
        check_name("hosts", host.name)
    for switch in topology.switches:
        check_name("switches", switch)
    for name in [*(host.name for host in topology.hosts), *topology.switches]:
        if name in seen:
            raise ConfigError(f"name {name!r}: need it once, have it twice in hosts and switches")
        seen.add(name)


def _check_addresses(topology: Topology) -> None:
    owner: dict[str, str] = {}
    for host in topology.hosts:
        field = f"hosts.{host.name}.address"
        try:
            address = ipaddress.IPv4Address(host.address)
        except ValueError:
            raise ConfigError(f"{field}: need an IPv4 address, have {host.address!r}") from None
        if not address.is_private or address.is_loopback or address.is_link_local:
            raise ConfigError(f"{field}: need a private address, as 10.77.0.1, have {address}")
        if host.address in owner:
            raise ConfigError(
                f"{field}: need an address of its own, have {owner[host.address]}'s, {address}"
            )
        owner[host.address] = host.name


def _check_cables(topology: Topology) -> None:
    nodes = {host.name for host in topology.hosts} | set(topology.switches)
    seen: set[frozenset[str]] = set()
    for index, cable in enumerate(topology.cables):
        field = f"links[{index}]"
        for end in cable.between:
            if end not in nodes:
                raise ConfigError(
                    f"{field}.between: need hosts or switches, have {end!r}; "
                    f"there are {', '.join(sorted(nodes))}"
                )
        ends = frozenset(cable.between)
        if len(ends) == 1:
            raise ConfigError(f"{field}.between: need two ends, have {cable.text}")
        if ends in seen:
            raise ConfigError(f"{field}.between: need one link of {cable.text}, have two")
        seen.add(ends)
        if not _MTU_MIN <= cable.mtu <= _MTU_MAX:
            raise ConfigError(f"{field}.mtu: need {_MTU_MIN} to {_MTU_MAX} bytes, have {cable.mtu}")


def _check_networks(topology: Topology) -> None:
    """Switches here are plain: a loop floods itself, and a small MTU on the way drops frames."""
    checked: set[str] = set()
    for switch in topology.switches:
        if switch in checked:
            continue
        network = topology.network(switch)
        inside = network & set(topology.switches)
        checked |= inside
        cables = [cable for cable in topology.cables if inside & set(cable.between)]
        mtus = {cable.mtu for cable in cables}
        if len(mtus) > 1:
            have = ", ".join(f"{cable.text}: {cable.mtu}" for cable in cables)
            raise ConfigError(f"links: need one mtu on all of switch {switch!r}, have {have}")
        # A tree has one cable less than nodes.
        if len(cables) >= len(network):
            raise ConfigError(
                f"links: need one way between any two nodes of switch {switch!r}, have a loop in "
                + ", ".join(cable.text for cable in cables)
            )
