"""What a preset tells of a machine, in a profile's own terms. What it doesn't is None or empty."""

from hetero.profile.facts.report import CPU as CPUFacts
from hetero.profile.facts.report import GPU as GPUFacts
from hetero.profile.facts.report import Facts, Memory, Power, Usable
from hetero.profile.node_profile import Ceilings, GPUCeilings
from hetero.profile.presets import CPU, GPU, Link, Preset, Server

# Of nominal memory bandwidth. Triad: 102 of 136 GB/s on two Haswell sockets (Puget Systems); reads
# do without a triad's fourth word.
_READ_SHARE, _COPY_SHARE, _TRIAD_SHARE = 0.85, 0.75, 0.75
_GPU_COPY_SHARE = 0.85

# GB/s of a PCIe lane of generation 1, doubled with every later one; what pinned copies get of it.
_LANE_GB_S = 0.25
_PCIE_SHARE = 0.8


def facts_of(preset: Preset) -> Facts:
    processor = _processor(preset)
    gpus = [_gpu_facts(preset)] if isinstance(preset, GPU) else []
    return Facts(
        system="unknown",
        virtual=None,
        product=preset.title if isinstance(preset, Server) else None,
        cpu=_cpu_facts(processor, _sockets(preset)),
        numa=[],
        usable=Usable(cpus=[], cpu_quota=None, memory_bytes=_memory_bytes(preset)),
        memory=_memory_facts(preset, processor),
        gpus=gpus,
        nics=[],
        disks=[],
        power=Power(on_battery=None, has_rapl=False),
        unseen=["everything: from a preset; `hetero profile node` on the machine would show it"],
    )


def ceilings_of(preset: Preset) -> Ceilings:
    """Without memory's where there is no processor in the preset."""
    processor, sockets = _processor(preset), _sockets(preset)
    bandwidth = preset.bandwidth_gb_s if isinstance(preset, CPU | Server) else None
    tflops = processor.tflops if processor is not None else {}
    return Ceilings(
        source="estimated",
        cores=sockets * processor.cores if processor is not None else 0,
        read_gb_s=bandwidth and _READ_SHARE * bandwidth,
        copy_gb_s=bandwidth and _COPY_SHARE * bandwidth,
        triad_gb_s=bandwidth and _TRIAD_SHARE * bandwidth,
        numa={},
        one_core=None,
        tflops={name: sockets * rate for name, rate in tflops.items()},
        gpus=[_gpu_ceilings(preset)] if isinstance(preset, GPU) else [],
        disks=[],
        spread={},
    )


def _processor(preset: Preset) -> CPU | None:
    if isinstance(preset, Server):
        return preset.processor()
    return preset if isinstance(preset, CPU) else None


def _sockets(preset: Preset) -> int:
    return preset.sockets if isinstance(preset, Server) else 1


def _memory_bytes(preset: Preset) -> int:
    """A GPU's host is unknown, and so is a link's."""
    return 0 if isinstance(preset, GPU | Link) else preset.memory_bytes


def _cpu_facts(processor: CPU | None, sockets: int) -> CPUFacts:
    return CPUFacts(
        model=processor.title if processor is not None else "unknown",
        sockets=sockets if processor is not None else 0,
        cores=sockets * processor.cores if processor is not None else 0,
        logical_cores=sockets * processor.threads if processor is not None else 0,
        isa=processor.isa if processor is not None else [],
        caches=[],
        max_mhz=None,
        governor=None,
        power_limit_watts=None,
    )


def _memory_facts(preset: Preset, processor: CPU | None) -> Memory:
    fitted = preset if isinstance(preset, CPU | Server) else None
    return Memory(
        num_bytes=_memory_bytes(preset),
        channels=_sockets(preset) * fitted.memory_channels if fitted is not None else None,
        modules=None,
        kind=processor.memory_kind if processor is not None else None,
        mega_transfers=fitted.memory_mega_transfers if fitted is not None else None,
        huge_pages=0,
        huge_page_bytes=None,
        transparent_huge_pages=None,
    )


def _gpu_facts(preset: GPU) -> GPUFacts:
    return GPUFacts(
        index=0,
        name=preset.title,
        vendor=preset.vendor,
        memory_bytes=preset.memory_bytes,
        compute_capability=preset.compute_capability,
        pcie_generation=preset.pcie_generation,
        pcie_width=preset.pcie_width,
        numa_node=None,
        power_limit_watts=preset.load_watts,
        driver=None,
    )


def _gpu_ceilings(preset: GPU) -> GPUCeilings:
    lanes_gb_s = preset.pcie_width * _LANE_GB_S * 2 ** (preset.pcie_generation - 1)
    return GPUCeilings(
        name=preset.title,
        copy_gb_s=_GPU_COPY_SHARE * preset.bandwidth_gb_s,
        tflops=preset.tflops,
        to_device_gb_s=_PCIE_SHARE * lanes_gb_s,
        from_device_gb_s=_PCIE_SHARE * lanes_gb_s,
    )
