"""GPUs: NVIDIA's as its own library sees them, AMD's from sysfs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hetero.machine.files import matching, read_text
from hetero.profile.facts.amd_gpu import amd_gpus
from hetero.profile.facts.nvidia_gpu import nvidia_gpus
from hetero.profile.facts.report import GPU

_NVIDIA, _AMD = "0x10de", "0x1002"
_DISPLAYS = ("0x0300", "0x0302", "0x0380", "0x1200")


def gpu_facts(root: Path, nvml: Callable[[], Any]) -> tuple[list[GPU], list[str]]:
    nvidia, why_not = nvidia_gpus(root, nvml)
    amd = amd_gpus(root)
    unseen = []
    bus = matching(root / "sys/bus/pci/devices", "*")
    if why_not is not None and not bus:
        unseen.append(f"NVIDIA GPUs: {why_not}, and no PCI bus shows; nvidia-smi")
    elif why_not is not None and (number := _displays(bus, _NVIDIA)):
        unseen.append(f"NVIDIA GPUs: {number} on the PCI bus, but {why_not}; nvidia-smi")
    if not amd and (number := _displays(bus, _AMD)):
        unseen.append(
            f"AMD GPUs: {number} on the PCI bus, but no amdgpu driver shows them; "
            "sudo modprobe amdgpu && rocminfo"
        )
    for gpu in (*nvidia, *amd):
        missing = [
            name
            for name in (
                "memory_bytes",
                "compute_capability",
                "pcie_generation",
                "pcie_width",
                "power_limit_watts",
            )
            if getattr(gpu, name) is None
        ]
        if missing:
            tool = "nvidia-smi -q" if gpu.vendor == "nvidia" else "rocm-smi -a"
            what = ", ".join(missing).replace("_", " ")
            unseen.append(f"GPU {gpu.name}: the driver does not say: {what}; {tool}")
    return [*nvidia, *amd], unseen


def _displays(bus: list[Path], vendor: str) -> int:
    return sum(
        read_text(device / "vendor") == vendor
        and (read_text(device / "class") or "").startswith(_DISPLAYS)
        for device in bus
    )
