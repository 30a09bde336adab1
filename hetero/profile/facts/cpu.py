"""The processor: from /proc/cpuinfo and /sys/devices/system/cpu."""

import re
from pathlib import Path

from hetero.machine.files import (
    colon_fields,
    count,
    matching,
    read_text,
    to_cpus,
    to_int,
    why_unreadable,
)
from hetero.profile.facts.probes import Basics
from hetero.profile.facts.rapl import power_limit_watts
from hetero.profile.facts.report import CPU, Cache

# What engines choose their kernels by, as the kernel names it: x86, then ARM.
_ISA = (
    "avx", "avx2", "f16c", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vbmi",
    "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def cpu_facts(root: Path, basics: Basics) -> tuple[CPU, list[str]]:
    processors = [
        block for block in colon_fields(read_text(root / "proc/cpuinfo")) if "processor" in block
    ]
    first = processors[0] if processors else {}
    folders = [root / f"sys/devices/system/cpu/cpu{cpu}" for cpu in online_cpus(root)]
    logical_cores = len(folders) or len(processors) or basics.logical_cores
    caches = _caches(folders)
    max_mhz = _max_mhz(folders) or basics.max_mhz
    cpu = CPU(
        model=cpu_model(root, basics),
        sockets=_distinct(folders, "topology/physical_package_id") or min(1, logical_cores),
        cores=_cores(folders) or basics.cores or logical_cores,
        logical_cores=logical_cores,
        isa=[name for name in _ISA if name in _flags(first)],
        caches=caches,
        max_mhz=max_mhz,
        governor=governor(root),
        power_limit_watts=power_limit_watts(root),
    )
    return cpu, _unseen(root, cpu)


def online_cpus(root: Path) -> list[int]:
    folder = root / "sys/devices/system/cpu"
    listed = to_cpus(read_text(folder / "online"))
    present = [to_int(path.name.removeprefix("cpu")) for path in matching(folder, "cpu[0-9]*")]
    return listed or [cpu for cpu in present if cpu is not None]


def cpu_model(root: Path, basics: Basics) -> str:
    for block in colon_fields(read_text(root / "proc/cpuinfo")):
        for field in ("model name", "Model", "cpu model", "cpu"):
            if block.get(field):
                return " ".join(block[field].split())
    return read_text(root / "proc/device-tree/model") or basics.cpu_model


def governor(root: Path) -> str | None:
    """As all have it; several where they differ."""
    files = matching(root / "sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_governor")
    return ", ".join(sorted({name for file in files if (name := read_text(file))})) or None


def _distinct(folders: list[Path], name: str) -> int:
    return len({text for folder in folders if (text := read_text(folder / name))})


def _cores(folders: list[Path]) -> int:
    """Hardware threads of one core name the same siblings; older kernels have the second name."""
    return _distinct(folders, "topology/core_cpus_list") or _distinct(
        folders, "topology/thread_siblings_list"
    )


def _flags(processor: dict[str, str]) -> set[str]:
    return set((processor.get("flags") or processor.get("Features") or "").split())


def _caches(folders: list[Path]) -> list[Cache]:
    """Each kind once: of 24 cores with caches of their own, one."""
    caches = {
        cache
        for folder in folders
        for index in matching(folder / "cache", "index[0-9]*")
        if (cache := read_cache(index))
    }
    return sorted(caches, key=lambda cache: (cache.level, cache.kind, cache.num_bytes))


def read_cache(index: Path) -> Cache | None:
    """index: its folder, cpu0/cache/index3."""
    level = count(index / "level")
    size = re.fullmatch(r"([0-9]{1,8})([KMG]?)", read_text(index / "size") or "")
    if level is None or size is None:
        return None
    return Cache(
        level=level,
        kind=(read_text(index / "type") or "unified").lower(),
        num_bytes=int(size[1]) * _UNITS[size[2]],
        shared_by=max(1, len(to_cpus(read_text(index / "shared_cpu_list")))),
    )


def _max_mhz(folders: list[Path]) -> float | None:
    khz = [count(folder / "cpufreq/cpuinfo_max_freq") for folder in folders]
    return max((number for number in khz if number), default=0) / 1e3 or None


def _unseen(root: Path, cpu: CPU) -> list[str]:
    cpuinfo = why_unreadable(root / "proc/cpuinfo")
    lines = []
    if not cpu.model:
        lines.append(f"CPU model: /proc/cpuinfo {cpuinfo}; lscpu")
    if not cpu.logical_cores:
        lines.append("CPU cores: neither /proc/cpuinfo nor /sys/devices/system/cpu; lscpu")
    if not cpu.isa:
        lines.append(f"CPU instruction sets: /proc/cpuinfo {cpuinfo}; lscpu")
    if not cpu.caches:
        lines.append("CPU caches: not under /sys/devices/system/cpu; lscpu --caches")
    if cpu.max_mhz is None:
        lines.append("CPU maximum clock: no cpufreq (a virtual machine?); cpupower frequency-info")
    if cpu.governor is None:
        lines.append("CPU governor: no cpufreq (a virtual machine?); cpupower frequency-info")
    if cpu.power_limit_watts is None:
        lines.append(
            "CPU power limit: RAPL shows none (AMD, a virtual machine, or no driver); "
            "sudo modprobe intel_rapl_msr && hetero profile node"
        )
    return lines
