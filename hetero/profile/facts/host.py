"""What the machine calls itself, and whether it is one: kernel, product, hypervisor, container."""

from pathlib import Path

from hetero.machine.files import colon_fields, is_there, read_text
from hetero.profile.facts.probes import Basics

# Found in the firmware's maker or product name; the first hit counts.
_HYPERVISORS = (
    ("qemu", "qemu"),
    ("kvm", "kvm"),
    ("vmware", "vmware"),
    ("virtualbox", "virtualbox"),
    ("microsoft corporation virtual machine", "hyper-v"),
    ("amazon ec2", "amazon"),
    ("google compute engine", "google"),
    ("xen", "xen"),
    ("bochs", "bochs"),
    ("parallels", "parallels"),
)
_CONTAINERS = ("kubepods", "docker", "libpod", "lxc", "containerd")
# What boards are sold with, for their builder to fill in.
_PLACEHOLDERS = {
    None,
    "To Be Filled By O.E.M.",
    "System Product Name",
    "Default string",
    "Not Specified",
    "None",
}


def system_name(root: Path, basics: Basics) -> tuple[str, list[str]]:
    """Kernel and architecture."""
    words = [read_text(root / "proc/sys/kernel" / name) for name in ("ostype", "osrelease", "arch")]
    # The architecture is a file since Linux 6.1.
    name = basics.system or " ".join(word for word in words if word)
    return name, [] if name else ["system: /proc/sys/kernel is not there; uname -a"]


def product_name(root: Path) -> tuple[str | None, list[str]]:
    folder = root / "sys/class/dmi/id"
    names = [read_text(folder / "product_name"), read_text(folder / "board_name")]
    names.append(read_text(root / "proc/device-tree/model"))
    name = next((name for name in names if name not in _PLACEHOLDERS), None)
    if name is not None:
        return name, []
    return None, ["product: the firmware names none; sudo dmidecode -s system-product-name"]


def virtualization(root: Path) -> str | None:
    """Both where both show: "kvm, docker"."""
    return ", ".join(filter(None, [_hypervisor(root), _container(root)])) or None


def _hypervisor(root: Path) -> str | None:
    if "microsoft" in (read_text(root / "proc/sys/kernel/osrelease") or "").lower():
        return "wsl"
    dmi = root / "sys/class/dmi/id"
    maker = f"{read_text(dmi / 'sys_vendor')} {read_text(dmi / 'product_name')}".lower()
    for mark, name in _HYPERVISORS:
        if mark in maker:
            return name
    if kind := read_text(root / "sys/hypervisor/type"):
        return kind
    flags = colon_fields(read_text(root / "proc/cpuinfo"))[0].get("flags", "")
    return "hypervisor" if "hypervisor" in flags.split() else None


def _container(root: Path) -> str | None:
    if name := read_text(root / "run/systemd/container"):
        return name
    if is_there(root / ".dockerenv"):
        return "docker"
    if is_there(root / "run/.containerenv"):
        return "podman"
    groups = read_text(root / "proc/self/cgroup") or ""
    mounts = read_text(root / "proc/self/mountinfo") or ""
    # With a namespace of its own a container sees no group's name; its root's layers show.
    top = next((line for line in mounts.splitlines() if " / / " in line), "")
    return next((name for name in _CONTAINERS if name in groups or name in top), None)
