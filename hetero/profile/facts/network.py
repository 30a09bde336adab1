"""Network cards: interfaces with a device behind them. lo, veth, bridges, bonds and tunnels have
none."""

import re
from pathlib import Path

from hetero.machine.files import (
    count,
    is_there,
    link_name,
    matching,
    numa_node_of,
    read_int,
    read_text,
)
from hetero.profile.facts.report import NIC


def nic_facts(root: Path) -> tuple[list[NIC], list[str]]:
    interfaces = matching(root / "sys/class/net", "*")
    nics = [_nic(path, root) for path in interfaces if is_there(path / "device")]
    if nics:
        return nics, [
            f"speed of {nic.name}: its driver names none (a virtual card?); ethtool {nic.name}"
            for nic in nics
            if nic.is_up and nic.speed_mbit is None
        ]
    virtual = ", ".join(path.name for path in interfaces if path.name != "lo")
    why = f"only virtual interfaces ({virtual})" if virtual else "none under /sys/class/net"
    return [], [f"network cards: {why}; ip -details link, on the host of a container"]


def _nic(path: Path, root: Path) -> NIC:
    device = path / "device"
    rdma = next(iter(matching(device / "infiniband", "*")), None)
    carrier = read_int(path / "carrier")  # not to be read while the interface is down
    speed = count(path / "speed") or (_rdma_speed_mbit(path, rdma) if rdma else None)
    return NIC(
        name=path.name,
        speed_mbit=speed,
        mtu=count(path / "mtu") or 0,
        is_up=carrier == 1 if carrier is not None else read_text(path / "operstate") == "up",
        numa_node=numa_node_of(device, root),
        rdma_device=rdma.name if rdma else None,
        driver=link_name(device / "driver"),
    )


def _rdma_speed_mbit(path: Path, rdma: Path) -> int | None:
    """InfiniBand's rate, "56 Gb/sec (4X FDR)": its interfaces have no speed."""
    port = rdma / "ports" / str((count(path / "dev_port") or 0) + 1)
    if "ACTIVE" not in (read_text(port / "state") or ""):
        return None
    match = re.match(r"([0-9]{1,4}(?:\.[0-9])?) Gb/sec", read_text(port / "rate") or "")
    return round(float(match[1]) * 1000) if match else None
