"""NVIDIA's GPUs through NVML, its management library (`nvidia-ml-py`)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hetero.machine.files import numa_node_of
from hetero.profile.facts.report import GPU


def nvidia_gpus(root: Path, load: Callable[[], Any]) -> tuple[list[GPU], str | None]:
    """And why there are none, if NVML does not answer."""
    try:
        nvml = load()
    except ImportError:
        return [], "nvidia-ml-py is not installed"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return [], f"NVML does not answer ({error})"
    try:
        driver = ask(nvml, nvml.nvmlSystemGetDriverVersion)
        number = ask(nvml, nvml.nvmlDeviceGetCount) or 0
        gpus = [_gpu(nvml, index, root, to_text(driver)) for index in range(number)]
        return [gpu for gpu in gpus if gpu is not None], None
    finally:
        ask(nvml, nvml.nvmlShutdown)


def ask(nvml: Any, question: Callable[..., Any], *arguments: Any) -> Any:
    """None where the card or its driver has no answer."""
    try:
        return question(*arguments)
    except nvml.NVMLError:
        return None


def to_text(value: str | bytes | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _gpu(nvml: Any, index: int, root: Path, driver: str | None) -> GPU | None:
    handle = ask(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
    if handle is None:
        return None  # off the bus
    memory = ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    capability = ask(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
    limit_mw = ask(nvml, nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    return GPU(
        index=index,
        name=to_text(ask(nvml, nvml.nvmlDeviceGetName, handle)) or "",
        vendor="nvidia",
        memory_bytes=memory.total if memory is not None else None,
        compute_capability="{}.{}".format(*capability) if capability is not None else None,
        # Of card and slot together; the current one falls to the first when the card idles.
        pcie_generation=ask(nvml, nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle)
        or ask(nvml, nvml.nvmlDeviceGetCurrPcieLinkGeneration, handle),
        pcie_width=ask(nvml, nvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
        numa_node=_numa_node(nvml, handle, root),
        power_limit_watts=limit_mw / 1e3 if limit_mw is not None else None,
        driver=driver,
    )


def _numa_node(nvml: Any, handle: Any, root: Path) -> int | None:
    address = ask(nvml, nvml.nvmlDeviceGetPciInfo, handle)
    if address is None:
        return None
    # NVML's domain has eight digits, sysfs's four: "00000000:3B:00.0".
    name = (to_text(address.busId) or "").lower()[-12:]
    return numa_node_of(root / "sys/bus/pci/devices" / name, root) if name else None
