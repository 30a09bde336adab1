"""The same decode steps on every NUMA node at once: what a server with a process on each would get.

A process for each node, with a model and a cache in that node's memory. Alone and all together,
in turns. Call it before this process loads the model itself: a copy more may be one too many.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from hetero.errors import HeteroError, PlanError
from hetero.kv.layout import KVLayout
from hetero.llama.model import Model
from hetero.machine.free_memory import free_memory_bytes
from hetero.profile.ceilings.workers import Workers
from hetero.profile.facts.report import Facts
from hetero.profile.node.rig import StepRig
from hetero.profile.node_profile import CoRun

_NUM_ROWS = 4
_CELLS = 256
_NUM_ROUNDS = 3
_TURN_S = 0.3  # or a step, if that is longer

# Beside weights and cells: an interpreter with its libraries, the engine's buffers.
_PROCESS_BYTES = 512 * 2**20

# What a slow disk gives.
_LOAD_BYTES_PER_S = 50e6

Say = Callable[[str], None]


class NodeDecode:
    """A worker's task: a model of its own, with a thread on each of the CPUs it may run on."""

    def __init__(self, path: Path, layout: KVLayout) -> None:
        self._rig = StepRig(
            Model(path),
            layout,
            num_sequences=_NUM_ROWS,
            context_tokens=_CELLS,
            unified=False,
            num_threads=len(os.sched_getaffinity(0)),
            chunk_tokens=_NUM_ROWS,
        )
        self._rig.hold([_CELLS // 2] * _NUM_ROWS)
        self.step()

    def step(self) -> float:
        """One step more, as an amount of work."""
        self._rig.time_step(_NUM_ROWS)
        return 1.0


def decode_on_all_nodes(
    path: Path, weight_bytes: int, layout: KVLayout, groups: Sequence[Sequence[int]]
) -> CoRun:
    """groups: of CPUs, a NUMA node's each.

    Raises: EngineError if a process fails.
    """
    slowdowns = []
    with Workers(groups) as workers:
        load_s = len(groups) * weight_bytes / _LOAD_BYTES_PER_S
        workers.prepare(NodeDecode, path, layout, longer_s=load_s)
        for _ in range(_NUM_ROUNDS):
            alone = [
                workers.rate("step", _TURN_S, slice(index, index + 1))
                for index in range(len(groups))
            ]
            slowdowns.append(sum(alone) / workers.rate("step", _TURN_S))
    return CoRun(
        source="measured",
        what=f"decode step of {_NUM_ROWS}, a process on each NUMA node",
        beside=f"the same on all {len(groups)} at once",
        slowdown=median(slowdowns),
        beside_slowdown=None,
    )


def nodes_co_runs(
    path: Path,
    weight_bytes: int,
    layout: KVLayout,
    facts: Facts,
    cpus: Mapping[int, Sequence[int]],
    say: Say,
) -> list[CoRun]:
    """One where the engine has CPUs on two nodes or more and a copy fits on each; else why not is
    said. cpus: NUMA node -> those to run on."""
    if len(cpus) < 2:
        return []
    try:
        _require_room(weight_bytes, layout, facts, cpus)
        say(f"decoding on {len(cpus)} NUMA nodes at once")
        return [decode_on_all_nodes(path, weight_bytes, layout, list(cpus.values()))]
    except HeteroError as error:
        say(f"all NUMA nodes at once: not measured: {error}")
        return []


def _require_room(
    weight_bytes: int, layout: KVLayout, facts: Facts, cpus: Mapping[int, Sequence[int]]
) -> None:
    """Raises: PlanError"""
    need_bytes = weight_bytes + _NUM_ROWS * _CELLS * layout.token_bytes + _PROCESS_BYTES
    have_bytes = min(free_memory_bytes(), facts.usable.memory_bytes)
    if len(cpus) * need_bytes > have_bytes:
        raise PlanError(
            f"need {len(cpus)} times {need_bytes / 2**30:.1f} GiB of memory, "
            f"have {have_bytes / 2**30:.1f} GiB"
        )
    for node in facts.numa:
        if node.node in cpus and node.memory_bytes < need_bytes:
            raise PlanError(
                f"NUMA node {node.node}: need {need_bytes / 2**30:.1f} GiB of memory, "
                f"have {node.memory_bytes / 2**30:.1f} GiB"
            )
