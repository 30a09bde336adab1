"""How many threads each engine gets when several share one machine.

Physical cores, one of them left to the router and to I/O: llama.cpp's threads spin at barriers,
and a thread that shares its core slows all of them.
"""

import os
from collections.abc import Sequence

import psutil

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def num_usable_cores() -> int:
    """Physical cores this process may run on, less one; at least 1."""
    num_cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        num_cores = min(num_cores, len(os.sched_getaffinity(0)))
    return max(1, num_cores - 1)


def split_threads(num_cores: int, num_nodes: int) -> list[int]:
    """Threads of each node, the first ones getting what does not divide; at least 1."""
    share, left = divmod(num_cores, num_nodes)
    return [max(1, share + (index < left)) for index in range(num_nodes)]


def share_cpus(numa: Sequence[Sequence[int]], num_nodes: int) -> list[list[int]]:
    """CPUs of each node: NUMA nodes go to them in turn, and those that meet on one share it evenly.

    One CPU of the first is left to the router. Where there are too few, some get none.
    """
    shares: list[list[int]] = [[] for _ in range(num_nodes)]
    for index, cpus in enumerate(numa):
        tenants = range(index, num_nodes, len(numa))
        first = 0
        for order, tenant in enumerate(tenants):
            share, left = divmod(len(cpus), len(tenants))
            end = first + share + (order < left)
            shares[tenant] = list(cpus[first:end])
            first = end
    if len(shares[0]) > 1:
        shares[0].pop()
    return shares


def thread_environment(num_threads: int, *, shares_cores: bool) -> dict[str, str]:
    """For a process with an engine of `num_threads`; without it torch and BLAS take every core."""
    environment = {name: str(num_threads) for name in _THREAD_VARIABLES}
    if shares_cores:
        environment["OMP_WAIT_POLICY"] = "passive"
    return environment
