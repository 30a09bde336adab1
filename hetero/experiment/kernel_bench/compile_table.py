"""`hetero bench kernels --compile`: what each kernel takes of each GPU, from its compiled code.

Every launch that a node makes is compiled for every capability, in several processes. No GPU, no
driver: registers, spilled bytes and shared memory are read from the code.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from typing import Any

from hetero.errors import ConfigError, HeteroError
from hetero.experiment.figures import Say
from hetero.experiment.kernel_bench.compiling import (
    SHARED_BYTES,
    Launch,
    compile_launch,
    recorded_launches,
)

_Case = tuple[str, Callable[[], object]]


def compile_kernels(say: Say) -> dict[str, Any]:
    """A row per case, kernel and capability; what does not compile is among the failures.

    Raises: ConfigError where Triton is interpreted: then there is no compiler.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise ConfigError(
            "bench kernels --compile: needs Triton's compiler, has its interpreter: unset "
            "TRITON_INTERPRET"
        )
    tasks = [(capability, label) for capability in SHARED_BYTES for label, _ in _cases(capability)]
    say(f"compiling {len(tasks)} launches for capabilities {', '.join(map(str, SHARED_BYTES))}")
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    # Spawned: the compiler's threads do not outlive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as pool:
        for (capability, label), result in zip(tasks, pool.map(_compile, tasks), strict=True):
            if isinstance(result, str):
                say(f"{label}, {capability}: {result}")
                failures.append({"name": f"{label} for {capability}", "error": result})
            else:
                rows += result
    return {
        "benchmark": "compiled kernels",
        "versions": {"triton": version("triton")},
        "shared_limit_bytes": {str(chip): limit for chip, limit in SHARED_BYTES.items()},
        "kernels": rows,
        "failures": failures,
    }


def markdown(report: dict[str, Any]) -> str:
    """A line per kernel, a column per compute capability."""
    limits = report["shared_limit_bytes"]
    cells: dict[str, dict[str, str]] = {}
    for row in report["kernels"]:
        cells.setdefault(row["case"], {})[str(row["capability"])] = _cell(row)
    lines = [
        "From the compiler; no GPU ran this, and it says nothing about speed.",
        "",
        "Registers a thread, shared memory a block, by compute capability; Triton "
        f"{report['versions']['triton']}.",
        "",
        f"| kernel | {' | '.join(limits)} |",
        "|---" * (1 + len(limits)) + "|",
        f"| *at most* | {' | '.join(f'255, {_size(limit)}' for limit in limits.values())} |",
    ]
    for case, by_capability in cells.items():
        columns = (by_capability.get(capability, "-") for capability in limits)
        lines.append(f"| {case} | {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any]) -> str:
    parts = [f"{row['registers']}"]
    if row["shared_bytes"]:
        parts.append(_size(row["shared_bytes"]))
    if row["stack_bytes"]:
        parts.append(f"**{row['stack_bytes']} B spilled**")
    return ", ".join(parts)


def _size(num_bytes: int) -> str:
    return f"{num_bytes} B" if num_bytes < 1024 else f"{num_bytes / 1024:.0f} KiB"


def _compile(task: tuple[int, str]) -> list[dict[str, Any]] | str:
    """The rows of one case for one capability, or why there are none."""
    capability, label = task
    launch_case = dict(_cases(capability))[label]
    try:
        with recorded_launches() as launches:
            launch_case()
        return [_row(label, launch, capability, len(launches)) for launch in launches]
    except HeteroError as error:
        return str(error)


def _row(label: str, launch: Launch, capability: int, num_launches: int) -> dict[str, Any]:
    usage = compile_launch(launch, capability)
    name = launch.kernel.__name__
    return {
        "case": label if num_launches == 1 else f"{label}: {name}",
        "kernel": name,
        "capability": capability,
        "registers": usage.registers,
        "stack_bytes": usage.stack_bytes,
        "shared_bytes": usage.shared_bytes,
    }


def _cases(capability: int) -> Iterator[_Case]:
    """Every launch a node makes there. Imported here: the kernels need Triton."""
    from hetero.experiment.kernel_bench.attention_cases import attention_cases
    from hetero.experiment.kernel_bench.dequantize_cases import dequantize_cases
    from hetero.experiment.kernel_bench.elementwise_cases import elementwise_cases
    from hetero.experiment.kernel_bench.pack_cases import pack_cases

    for cases in (
        partial(attention_cases, capability),
        pack_cases,
        dequantize_cases,
        elementwise_cases,
    ):
        yield from cases()
