"""Namespaces, veth pairs and bridges for a topology, and the rate of each cable.

A host is a namespace, a switch one with a bridge in it, a cable a veth pair with a token bucket at
both ends. Nothing is ever in the machine's own namespace, so its firewall has no say, and removing
the namespaces removes it all.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from hetero.launch.lab.commands import read_tc, run_ip, run_tc, tool_path
from hetero.launch.lab.limits import online_cpus
from hetero.launch.lab.shaping import token_bucket
from hetero.launch.lab.topology import Cable, Topology

NAMESPACES = Path("/run/netns")

# `ip netns exec` shows a file of /etc/netns/NAMESPACE in place of that of /etc.
NAMESPACE_FILES = Path("/etc/netns")

_PREFIX = "hetero-lab."


def lab_prefix(lab: str) -> str:
    """What the names of all that belongs to a lab begin with."""
    return f"{_PREFIX}{lab}."


def namespace(lab: str, node: str) -> str:
    return lab_prefix(lab) + node


def lab_of_namespace(name: str) -> str | None:
    if not name.startswith(_PREFIX):
        return None
    return name.removeprefix(_PREFIX).partition(".")[0]


def interfaces(topology: Topology) -> dict[tuple[Cable, str], str]:
    """The name of each cable's end, in the node where it ends: counted in the file's order."""
    names = {}
    counts: dict[str, int] = {}
    for cable in topology.cables:
        for node in cable.between:
            number = counts.get(node, 0)
            counts[node] = number + 1
            kind = "port" if node in topology.switches else "eth"
            names[cable, node] = f"{kind}{number}"
    return names


def build_network(topology: Topology) -> None:
    names = interfaces(topology)
    nodes = [*(host.name for host in topology.hosts), *topology.switches]
    _write_hosts_files(topology)
    run_ip(
        [
            *(f"netns add {namespace(topology.name, node)}" for node in nodes),
            *(_veth_line(topology.name, cable, names) for cable in topology.cables),
        ]
    )
    for node in nodes:
        where = namespace(topology.name, node)
        run_ip(_interface_lines(topology, node, names), namespace=where)
        run_tc(
            (
                _qdisc_line(names[cable, node], token_bucket(cable.rate_bits_per_s, cable.mtu))
                for cable in topology.cables_of(node)
            ),
            namespace=where,
        )
        _settle_kernel(where)


def set_cable(topology: Topology, cable: Cable, *, up: bool) -> None:
    """Gives a cable its rate, keeping what is queued, or unplugs it: everything is dropped."""
    names = interfaces(topology)
    bucket = token_bucket(cable.rate_bits_per_s, cable.mtu)
    for node in cable.between:
        run_tc(
            [_qdisc_line(names[cable, node], bucket if up else "blackhole")],
            namespace=namespace(topology.name, node),
        )


def cable_rates(topology: Topology) -> dict[Cable, int | None]:
    """What the kernel limits each cable to, in bits per second; None for one that is unplugged."""
    names = interfaces(topology)
    rates = {}
    for cable in topology.cables:
        node = cable.between[0]
        where = namespace(topology.name, node)
        answer = read_tc("-j", "qdisc", "show", "dev", names[cable, node], namespace=where)
        (qdisc,) = json.loads(answer)
        rates[cable] = 8 * qdisc["options"]["rate"] if qdisc["kind"] == "tbf" else None
    return rates


def _veth_line(lab: str, cable: Cable, names: dict[tuple[Cable, str], str]) -> str:
    a, b = cable.between
    return (
        f"link add {names[cable, a]} netns {namespace(lab, a)} mtu {cable.mtu} type veth "
        f"peer name {names[cable, b]} netns {namespace(lab, b)} mtu {cable.mtu}"
    )


def _interface_lines(
    topology: Topology, node: str, names: dict[tuple[Cable, str], str]
) -> Iterator[str]:
    own = [(cable, names[cable, node]) for cable in topology.cables_of(node)]
    if node in topology.switches:
        yield "link add bridge type bridge"
        for _, name in own:
            yield f"link set {name} master bridge up"
        yield "link set bridge up"
        return
    yield "link set lo up"
    address = topology.host(node).address
    for _, name in own:
        yield f"addr add {address}/32 dev {name}"
        yield f"link set {name} up"
    # A route per neighbour instead of a subnet, so that a host has one address on all its cables.
    # Direct cables come first: two hosts that also share a switch use theirs.
    routed = set()
    for cable, name in sorted(own, key=lambda each: each[0].far_end(node) in topology.switches):
        for other in topology.neighbours(cable, node):
            if other.name not in routed:
                yield f"route add {other.address}/32 dev {name} src {address}"
                routed.add(other.name)


def _qdisc_line(interface: str, qdisc: str) -> str:
    # `replace` changes one of the same kind in place.
    return f"qdisc replace dev {interface} root {qdisc}"


def _settle_kernel(where: str) -> None:
    """What a lab must not take over from the machine it runs on.

    Packets of one connection that are received on several CPUs overtake each other, which cables
    don't do: TCP took it for loss, and 10 Gbit/s became 8.3. Receiving is therefore steered by
    connection (RPS). And congestion control is Linux's default, whatever this machine's is; where
    a namespace may not choose that, Reno, which is the same at delays of a house. Nor does a
    connection begin with what an earlier one learned: the link's rate may have changed since.
    """
    # A bitmap of the CPUs, in words of 32 bits.
    num_words, num_bits = divmod(max(online_cpus()) + 1, 32)
    mask = ",".join([f"{(1 << num_bits) - 1:x}"] + ["ffffffff"] * num_words)
    script = (
        "for queue in /sys/class/net/[ep]*/queues/rx-*/rps_cpus; do "
        f'[ ! -w "$queue" ] || echo {mask} > "$queue"; done; '
        "control=/proc/sys/net/ipv4/tcp_congestion_control; "
        "for name in cubic reno; do echo $name > $control && break; done 2> /dev/null; "
        "echo 1 > /proc/sys/net/ipv4/tcp_no_metrics_save"
    )
    run_ip([f"netns exec {where} sh -c '{script}'"])


def _write_hosts_files(topology: Topology) -> None:
    lines = [f"{host.address} {host.name}\n" for host in topology.hosts]
    for host in topology.hosts:
        folder = NAMESPACE_FILES / namespace(topology.name, host.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))


def entering(lab: str, host: str) -> list[str]:
    """What a command line begins with to run in a host's namespace; the command replaces it."""
    # The shell says what can't be run as people and scripts know it: `not found`, and 127.
    shell = ["/bin/sh", "-c", 'exec "$@"', host]
    return [tool_path("ip"), "netns", "exec", namespace(lab, host), *shell]
