"""Which machine, code and libraries a result is of, and how fast this machine's memory is."""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from hetero import __version__

_PACKAGES = ("llama-cpp-python", "torch", "numpy", "pyzmq", "msgspec", "xxhash", "gguf")

# Beyond any last-level cache, so that it is memory that is measured.
_CEILING_BYTES = 512 * 2**20


def provenance() -> dict[str, Any]:
    return {
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"hetero": __version__, "python": platform.python_version()}
        | {name: _version(name) for name in _PACKAGES},
        "machine": {
            "cpu": _cpu_model(),
            "cores": psutil.cpu_count(logical=False),
            "logical_cores": psutil.cpu_count(),
            "usable_cores": len(psutil.Process().cpu_affinity() or []),
            "memory_bytes": psutil.virtual_memory().total,
            "load_average": os.getloadavg()[0],
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        },
        "environment": {
            name: os.environ.get(name)
            for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        },
    }


def memory_ceilings(*, quick: bool) -> dict[str, float]:
    """Bytes per second of one core: a copy (as bytes copied), and reading alone (a BLAS dot)."""
    source = np.ones((_CEILING_BYTES // 64 if quick else _CEILING_BYTES) // 4, np.float32)
    target = np.zeros_like(source)
    return {
        "memcpy_bytes_per_s": source.nbytes / _median_s(lambda: np.copyto(target, source)),
        "read_bytes_per_s": source.nbytes / _median_s(lambda: np.dot(source, source)),
    }


def _median_s(call: Callable[[], object]) -> float:
    call()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def _commit() -> str | None:
    """Of the checkout this package lies in, with a + if it has changes; None outside of one."""
    folder = Path(__file__).parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changes else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
