"""Whole block devices that a KV tier could lie on."""

from pathlib import Path

from hetero.machine.files import (
    count,
    is_there,
    matching,
    numa_node_of,
    read_int,
    read_text,
    upwards,
)
from hetero.profile.facts.report import Disk

_BLOCK_BYTES = 512  # sysfs counts in these, whatever the device's own are
_HYPERVISORS = ("qemu", "vmware", "vbox", "virtual", "msft", "xen", "google")
_OPTICAL = 5  # SCSI peripheral type


def disk_facts(root: Path) -> tuple[list[Disk], list[str]]:
    """Without what other block devices make up (loop, zram, dm, md: no device behind them), drives
    without a medium, optical ones, and single paths of a multipath NVMe."""
    folders = matching(root / "sys/block", "*")
    disks = [
        _disk(path, root)
        for path in folders
        if is_there(path / "device")
        and count(path / "size")
        and read_int(path / "device/type") != _OPTICAL
        and read_int(path / "hidden") != 1
    ]
    if disks:
        return disks, []
    why = "only virtual block devices" if folders else "/sys/block shows nothing"
    return [], [f"disks: {why}; lsblk -d -o NAME,MODEL,SIZE,ROTA,TRAN, on the host of a container"]


def _disk(path: Path, root: Path) -> Disk:
    rotational = read_int(path / "queue/rotational")
    return Disk(
        name=path.name,
        model=read_text(path / "device/model"),
        num_bytes=(count(path / "size") or 0) * _BLOCK_BYTES,
        is_rotational=rotational == 1 if rotational in (0, 1) else None,
        kind=_kind(path, root),
        numa_node=numa_node_of(path / "device", root),
    )


def _kind(path: Path, root: Path) -> str:
    """By what is on the way to it. scsi: behind a controller that hides its disks' kind."""
    if path.name.startswith("nvme"):
        return "nvme"
    if path.name.startswith("mmcblk"):
        return "mmc"
    maker = f"{read_text(path / 'device/vendor')} {read_text(path / 'device/model')}".lower()
    way = " ".join(folder.as_posix() for folder in upwards(path / "device", root)[:1])
    if path.name.startswith(("vd", "xvd")) or any(name in maker for name in _HYPERVISORS):
        return "virtual"
    for mark, kind in (("/usb", "usb"), ("/ata", "sata"), ("/end_device", "sas")):
        if mark in way:
            return kind
    return "scsi"
