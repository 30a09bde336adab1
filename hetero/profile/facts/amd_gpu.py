"""AMD's GPUs from sysfs: the amdgpu driver's files, and the compute driver's (kfd) for the
architecture."""

from pathlib import Path

from hetero.machine.files import (
    count,
    link_name,
    matching,
    numa_node_of,
    read_text,
    to_int,
)
from hetero.profile.facts.pci import device_name, link_generation, link_width
from hetero.profile.facts.report import GPU

_VENDOR = "0x1002"


def amd_gpus(root: Path) -> list[GPU]:
    devices = [
        card / "device"
        for card in matching(root / "sys/class/drm", "card[0-9]*")
        if card.name.removeprefix("card").isdecimal()  # not its outputs, card0-DP-1
        if read_text(card / "device/vendor") == _VENDOR
    ]
    architectures = _architectures(root)
    return [_gpu(root, index, device, architectures) for index, device in enumerate(devices)]


def _gpu(root: Path, index: int, device: Path, architectures: dict[int, str]) -> GPU:
    minors = [to_int(path.name[7:]) for path in matching(device / "drm", "renderD*")]
    limits = [count(path) for path in matching(device, "hwmon/hwmon*/power1_cap")]
    watts = next((microwatts * 1e-6 for microwatts in limits if microwatts), None)
    pci_id = read_text(device / "device") or ""
    name = read_text(device / "product_name") or device_name(root, _VENDOR, pci_id)
    driver = link_name(device / "driver")
    return GPU(
        index=index,
        name=name or f"AMD {pci_id}".strip(),
        vendor="amd",
        memory_bytes=count(device / "mem_info_vram_total"),
        compute_capability=next((architectures[m] for m in minors if m in architectures), None),
        pcie_generation=link_generation(device, root),
        pcie_width=link_width(device, root),
        numa_node=numa_node_of(device, root),
        power_limit_watts=watts,
        # The driver of the kernel itself has no version of its own.
        driver=" ".join(filter(None, [driver, read_text(root / "sys/module/amdgpu/version")]))
        or None,
    )


def _architectures(root: Path) -> dict[int, str]:
    """By the render node's number. 90006 is gfx906, 90010 gfx90a: stepping is a hex digit."""
    names = {}
    for node in matching(root / "sys/class/kfd/kfd/topology/nodes", "[0-9]*"):
        words = (read_text(node / "properties") or "").split()
        fields = dict(zip(words[::2], words[1::2], strict=False))
        minor = to_int(fields.get("drm_render_minor"))
        version = to_int(fields.get("gfx_target_version"))
        if minor is not None and version is not None and version > 0:
            names[minor] = f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"
    return names
