"""Where kernels are measured, and what it is."""

import gc
from typing import Any

import torch

from hetero.errors import ConfigError
from hetero.prefill.triton_support import capability, triton_problem


def bench_device(*, quick: bool) -> torch.device:
    """The GPU; for a quick run the CPU does, where Triton is interpreted.

    Raises: ConfigError where kernels can't run, with the reason and what can be done without.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not quick:
        raise ConfigError(
            "bench kernels: need a GPU, have none: --quick with TRITON_INTERPRET=1 tries it out on "
            "the CPU, --compile says what kernels take of GPUs that are not there"
        )
    problem = triton_problem(device)
    if problem is not None:
        raise ConfigError(f"bench kernels: {problem}")
    return device


def gpu_facts(device: torch.device) -> dict[str, Any] | None:
    """None for a CPU, whose kernels are interpreted."""
    if device.type == "cpu":
        return None
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": capability(device),
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
    }


def free_memory() -> None:
    """Give back what nobody uses: an engine plans with what the driver says is free."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
