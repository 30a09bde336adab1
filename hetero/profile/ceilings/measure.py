"""All ceilings of a machine, one after the other, within a budget of seconds and of memory."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from statistics import median

from hetero.errors import ConfigError, HeteroError
from hetero.machine.free_memory import free_memory_bytes
from hetero.profile.ceilings.bandwidth import Arrays
from hetero.profile.ceilings.caches import last_level_bytes
from hetero.profile.ceilings.disk import disk_ceilings
from hetero.profile.ceilings.flops import Product, TorchProducts, torch_rates
from hetero.profile.ceilings.gpu import gpu_ceilings
from hetero.profile.ceilings.workers import Workers
from hetero.profile.node_profile import Ceilings, CoreBandwidth, DiskCeilings, GPUCeilings

Say = Callable[[str], None]
Samples = dict[str, list[float]]  # by the figure's name

_KINDS = ("read", "copy", "triad")
_REPEATS = 5

# Shorter ones may not overlap on a busy machine, and then count for nothing.
_LEAST_TURN_S = 0.05

# All arrays together, of the last-level caches, so that a round finds nothing of the one before it
# there. STREAM asks as much of each array.
_CACHE_FACTOR = 4
_LEAST_BYTES = 3 * 2**20

# Starting processes, touching memory for the first time, importing torch. The rest of the budget,
# or half of a small one, goes to the measurements in these parts.
_STARTING_S = 3.0
_ALL_SHARE, _NODES_SHARE, _ONE_CORE_SHARE = 0.4, 0.2, 0.15
_F32_SHARE, _TORCH_SHARE, _DISK_SHARE = 0.05, 0.1, 0.1


class _Cores:
    """Who works: the engines' cores, and those of other nodes, which are measured beside them."""

    def __init__(self, numa: dict[int, list[int]], engine_node: int | None) -> None:
        self.numa = numa
        self._engine_node = next(iter(numa)) if len(numa) == 1 else engine_node
        nodes = [node for node in numa if engine_node in (None, node)]
        self.of_engines = [cpu for node in nodes for cpu in numa[node]]
        self.others = [cpu for node in numa if node not in nodes for cpu in numa[node]]

    def prefix(self, node: int) -> str:
        """Of a node's figures; those of the engines' own have none."""
        return "" if node == self._engine_node else f"numa.{node}."


def measure_ceilings(
    *,
    numa: dict[int, list[int]],
    folder: Path | None,
    seconds: float,
    max_bytes: int,
    say: Say,
    engine_node: int | None = None,
) -> Ceilings:
    """What the cores, the memory, the GPUs and the disk give to code that does nothing else.

    numa: node -> cpus to use, one of each physical core. engine_node: the one whose cores engines
    use; None: those of all. folder: on the disk to measure, if any. seconds: about, for all; GPUs
    come on top. max_bytes: of memory, at most half of what is free is taken. A part that fails is
    said, and missing from the result; without memory's there is none.

    Raises: ConfigError without cpus, EngineError if memory can't be measured.
    """
    numa = {node: cpus for node, cpus in sorted(numa.items()) if cpus}
    if not numa:
        raise ConfigError("ceilings: need cores to measure, have none")
    cores = _Cores(numa, engine_node)
    num_bytes = _array_bytes(numa, max_bytes, say)
    seconds = max(seconds - _STARTING_S, seconds / 2)
    samples: Samples = {}
    _measure_one_core(cores, num_bytes, seconds, samples, say)
    _measure_cores(cores, num_bytes, seconds, samples, say)
    gpus = _torch_part(cores.of_engines, seconds, samples, say)
    figures = {name: median(values) for name, values in samples.items()}
    num_cores = len(cores.of_engines)
    return Ceilings(
        source="measured",
        cores=num_cores,
        read_gb_s=figures["read_gb_s"],
        copy_gb_s=figures["copy_gb_s"],
        triad_gb_s=figures["triad_gb_s"],
        numa={
            node: _core_bandwidth(figures, cores.prefix(node), len(cpus))
            for node, cpus in numa.items()
        },
        one_core=_core_bandwidth(figures, "one_core." if num_cores > 1 else "", 1),
        tflops={
            name.removeprefix("tflops."): value
            for name, value in figures.items()
            if name.startswith("tflops.")
        },
        gpus=gpus,
        disks=[] if folder is None else _disks(folder, seconds, say),
        spread={name: (min(values), max(values)) for name, values in samples.items()},
    )


def _array_bytes(numa: dict[int, list[int]], max_bytes: int, say: Say) -> int:
    cache_bytes = last_level_bytes(cpu for cpus in numa.values() for cpu in cpus)
    want_bytes = max(_CACHE_FACTOR * cache_bytes, _LEAST_BYTES)
    num_bytes = min(want_bytes, max_bytes, free_memory_bytes() // 2)
    if num_bytes < want_bytes:
        say(
            f"memory: need {want_bytes / 2**20:.0f} MiB to be past {cache_bytes / 2**20:.0f} MiB "
            f"of caches, have {num_bytes / 2**20:.0f} MiB: its figures may be too high"
        )
    return num_bytes


def _measure_one_core(
    cores: _Cores, num_bytes: int, seconds: float, samples: Samples, say: Say
) -> None:
    """With as much memory as its node will have: it has that node's cache to itself."""
    if len(cores.of_engines) == 1:
        return
    with Workers([cores.of_engines[:1]]) as workers:
        workers.prepare(Arrays, num_bytes // len(cores.numa))
        _sample(workers, slice(None), "one_core.", _ONE_CORE_SHARE * seconds, samples, say)


def _measure_cores(
    cores: _Cores, num_bytes: int, seconds: float, samples: Samples, say: Say
) -> None:
    cpus = cores.of_engines + cores.others
    engines = slice(len(cores.of_engines))
    with Workers([[cpu] for cpu in cpus]) as workers:
        workers.prepare(Arrays, num_bytes // len(cpus))
        _sample(workers, engines, "", _ALL_SHARE * seconds, samples, say)
        for node, ours in cores.numa.items():
            if prefix := cores.prefix(node):
                first = cpus.index(ours[0])
                among = slice(first, first + len(ours))
                share = _NODES_SHARE / len(cores.numa)
                _sample(workers, among, prefix, share * seconds, samples, say)
        workers.prepare(Product)
        turn_s = max(_LEAST_TURN_S, _F32_SHARE * seconds / _REPEATS)
        rates = [workers.rate("f32", turn_s, engines) / 1e12 for _ in range(_REPEATS)]
        samples["tflops.f32"] = rates
        say(f"f32: {median(rates):.3g} TFLOP/s")


def _sample(
    workers: Workers, among: slice, prefix: str, seconds: float, samples: Samples, say: Say
) -> None:
    """Kinds take turns, so that what else happens on the machine meets all of them."""
    turn_s = max(_LEAST_TURN_S, seconds / _REPEATS / len(_KINDS))
    for _ in range(_REPEATS):
        for kind in _KINDS:
            rate = workers.rate(kind, turn_s, among) / 1e9
            samples.setdefault(f"{prefix}{kind}_gb_s", []).append(rate)
    figures = [f"{kind} {median(samples[f'{prefix}{kind}_gb_s']):.1f}" for kind in _KINDS]
    say(f"memory, {prefix.rstrip('.') or 'the engines'}: {', '.join(figures)} GB/s")


def _torch_part(cpus: list[int], seconds: float, samples: Samples, say: Say) -> list[GPUCeilings]:
    if importlib.util.find_spec("torch") is None:
        say("torch is not installed: no other types than f32, no GPUs")
        return []
    try:
        with Workers([cpus]) as workers:
            workers.prepare(TorchProducts, len(cpus))
            [rates] = workers.call(torch_rates, _TORCH_SHARE * seconds)
            for name, values in rates.items():
                samples[f"tflops.{name}"] = [value / 1e12 for value in values]
                say(f"{name}: {median(values) / 1e12:.3g} TFLOP/s")
            [gpus] = workers.call(gpu_ceilings)
    except HeteroError as error:
        say(f"torch: not measured: {error}")
        return []
    for gpu in gpus:
        say(f"{gpu.name}: copy {gpu.copy_gb_s:.0f} GB/s")
    return list(gpus)


def _disks(folder: Path, seconds: float, say: Say) -> list[DiskCeilings]:
    try:
        disk = disk_ceilings(folder, seconds=_DISK_SHARE * seconds)
    except HeteroError as error:
        say(f"not measured: {error}")
        return []
    say(f"disk of {folder}: read {disk.read_gb_s:.2f}, write {disk.write_gb_s:.2f} GB/s")
    return [disk]


def _core_bandwidth(figures: dict[str, float], prefix: str, num_cores: int) -> CoreBandwidth:
    return CoreBandwidth(
        cores=num_cores,
        read_gb_s=figures[f"{prefix}read_gb_s"],
        copy_gb_s=figures[f"{prefix}copy_gb_s"],
        triad_gb_s=figures[f"{prefix}triad_gb_s"],
    )
