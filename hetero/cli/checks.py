"""What `hetero doctor` looks at, one function each. Must itself run where nearly all is missing.

Native packages are imported in a process of their own: one compiled for another CPU kills it.
"""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

# In step with pyproject.toml, which a test compares.
LLAMA_VERSION = "0.3.36"

# Processes, the demo model, and torch's own libraries.
_NEED_MEMORY_BYTES = 2 * 2**30
# An 8B model in four to five bits.
_NEED_DISK_BYTES = 8 * 2**30
_DEFAULT_PORT = 8080
_IMPORT_TIMEOUT_S = 120

# llama.cpp's names of what makes it fast, and Linux's.
_CPU_FEATURES = {"AVX": "avx", "AVX2": "avx2", "F16C": "f16c", "FMA": "fma", "AVX512": "avx512f"}

_LLAMA_FACTS = """
import json, llama_cpp
print(json.dumps({
    "features": llama_cpp.llama_print_system_info().decode(),
    "gpu": bool(llama_cpp.llama_supports_gpu_offload()),
}))
"""
_TORCH_FACTS = """
import json, torch
from hetero.prefill.triton_support import triton_problem
cuda = torch.cuda.is_available()
print(json.dumps({
    "version": torch.__version__,
    "cuda": cuda,
    "triton_problem": triton_problem(torch.device("cuda")) if cuda else None,
}))
"""
_REBUILD = (
    f"pip install --force-reinstall --no-deps --no-cache-dir llama-cpp-python=={LLAMA_VERSION}"
)


@dataclass(frozen=True, kw_only=True)
class Check:
    """`required`: hetero can't do without. Otherwise it is slower, or a part of it is missing."""

    name: str
    ok: bool
    required: bool
    have: str
    need: str
    fix: str  # empty where nothing has to be done, or nothing can be


def all_checks() -> list[Check]:
    gpu = _nvidia_gpu()
    llama = _facts(_LLAMA_FACTS)
    has_llama = isinstance(llama, dict)
    checks = [_python(), _compiler(needed=not has_llama), _cmake(needed=not has_llama)]
    checks.append(_llama_package(llama))
    if isinstance(llama, dict):
        checks.append(_cpu_features(llama["features"]))
        checks.append(_llama_gpu(gpu, offloads=llama["gpu"]))
    torch = _facts(_TORCH_FACTS)
    checks.append(_torch(gpu, torch))
    if isinstance(torch, dict) and torch["cuda"]:
        checks.append(_triton(torch["triton_problem"]))
    return [*checks, _nixl(), _memory(), _disk(), _port()]


def _python() -> Check:
    return Check(
        name="Python",
        ok=sys.version_info >= (3, 11),
        required=True,
        have=platform.python_version(),
        need="3.11 or later",
        fix=_install("python3.11", "python3.11", "python"),
    )


def _compiler(*, needed: bool) -> Check:
    found = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    return Check(
        name="C++ compiler",
        ok=found is not None,
        required=needed,
        have=found or "none",
        need="any, to build llama.cpp for this CPU",
        fix=_install("build-essential", "gcc-c++", "base-devel"),
    )


def _cmake(*, needed: bool) -> Check:
    found = shutil.which("cmake")
    return Check(
        name="cmake",
        # pip fetches one for the build where there is none.
        ok=found is not None or not needed,
        required=False,
        have=found or "none",
        need="3.21 or later, or a connection for pip to fetch it",
        fix=_install("cmake", "cmake", "cmake"),
    )


def _llama_package(facts: dict[str, Any] | str) -> Check:
    try:
        have = version("llama-cpp-python")
    except PackageNotFoundError:
        have = "none"
    works = isinstance(facts, dict)
    return Check(
        name="llama-cpp-python",
        ok=have == LLAMA_VERSION and works,
        required=True,
        have=have if works or have == "none" else f"{have}, which does not load: {facts}",
        need=f"{LLAMA_VERSION}: other releases save their state in other layouts",
        fix=_REBUILD,
    )


def _cpu_features(built: str) -> Check:
    """Whether llama.cpp was compiled for what this CPU can do."""
    used = {name for name in _CPU_FEATURES if f"{name} = 1" in built}
    flags = _cpu_flags()
    has = {name for name, flag in _CPU_FEATURES.items() if flag in flags}
    return Check(
        name="CPU features",
        ok=has <= used,
        required=False,
        have=", ".join(sorted(used)) or "none of AVX",
        need=", ".join(sorted(has)) or "what the CPU has",
        fix=f"{_REBUILD} --no-binary llama-cpp-python",
    )


def _llama_gpu(gpu: str | None, *, offloads: bool) -> Check:
    return Check(
        name="llama.cpp on the GPU",
        ok=gpu is None or offloads,
        required=False,
        have="GPU support" if offloads else "CPU only",
        need="nothing more" if gpu is None else f"CUDA support, for {gpu}",
        fix=f'CMAKE_ARGS="-DGGML_CUDA=on" {_REBUILD} --no-binary llama-cpp-python',
    )


def _torch(gpu: str | None, facts: dict[str, Any] | str) -> Check:
    need = "torch 2.7 or later, on prefill nodes that use it"
    if not isinstance(facts, dict):
        return Check(
            name="torch",
            ok=False,
            required=False,
            have="none",
            need=need,
            fix="pip install 'hetero[torch]'",
        )
    return Check(
        name="torch",
        ok=gpu is None or facts["cuda"],
        required=False,
        have=f"{facts['version']}, {'CUDA' if facts['cuda'] else 'CPU only'}",
        need=need if gpu is None else f"{need}, with CUDA for {gpu}",
        fix="pip install --force-reinstall torch, and a driver that `nvidia-smi` calls new enough",
    )


def _triton(problem: str | None) -> Check:
    return Check(
        name="Triton",
        ok=problem is None,
        required=False,
        have="its kernels can run here" if problem is None else problem,
        need="Triton's kernels on the GPU; without them torch's SDPA attends, or llama.cpp reads",
        fix="",
    )


def _nixl() -> Check:
    devices = sorted(path.name for path in Path("/sys/class/infiniband").glob("*"))
    try:
        have = version("nixl-cu12")
    except PackageNotFoundError:
        have = "none"
    return Check(
        name="NIXL",
        ok=have != "none" or not devices,
        required=False,
        have=have,
        need=f"any, for RDMA by {', '.join(devices)}"
        if devices
        else "nothing: no RDMA device here",
        fix="pip install 'hetero[rdma]'",
    )


def _memory() -> Check:
    free = psutil.virtual_memory().available
    return Check(
        name="memory",
        ok=free >= _NEED_MEMORY_BYTES,
        required=True,
        have=f"{free / 2**30:.1f} GiB available",
        need=f"{_NEED_MEMORY_BYTES / 2**30:.0f} GiB, and a model's weights and KV cache",
        fix="end what takes it; `hetero model info` says what a model needs",
    )


def _disk() -> Check:
    """Where `hetero model pull` puts files."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    return Check(
        name="disk for models",
        ok=free >= _NEED_DISK_BYTES,
        required=False,
        have=f"{free / 2**30:.1f} GiB free at {there}",
        need=f"{_NEED_DISK_BYTES / 2**30:.0f} GiB for a first real model",
        fix="export HF_HOME=/a/larger/disk",
    )


def _port() -> Check:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", _DEFAULT_PORT))
            is_free = True
        except OSError:
            is_free = False
    return Check(
        name="port",
        ok=is_free,
        required=False,
        have=f"{_DEFAULT_PORT} is {'free' if is_free else 'in use'}",
        need=f"{_DEFAULT_PORT}, or any other for `hetero up`",
        fix=f"hetero up --local --port {_DEFAULT_PORT + 1}",
    )


def _facts(code: str) -> dict[str, Any] | str:
    """What the code prints, or why it could not."""
    try:
        run = subprocess.run(
            [sys.executable, "-P", "-c", code],
            capture_output=True,
            text=True,
            timeout=_IMPORT_TIMEOUT_S,
            check=False,
        )
        if run.returncode == 0:
            facts: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
            return facts
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        return str(error)
    if run.returncode < 0:
        return f"it is killed by signal {-run.returncode}"
    return run.stderr.strip().rpartition("\n")[2]


def _nvidia_gpu() -> str | None:
    """The first GPU's name."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        run = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.splitlines()[0].strip() if run.returncode == 0 and run.stdout else None


def _cpu_flags() -> frozenset[str]:
    """As Linux names them; none elsewhere, where llama.cpp is built for the CPU it is built on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def _install(debian: str, fedora: str, arch: str) -> str:
    for tool, package, command in (
        ("apt-get", debian, "sudo apt-get install"),
        ("dnf", fedora, "sudo dnf install"),
        ("pacman", arch, "sudo pacman -S"),
    ):
        if shutil.which(tool):
            return f"{command} {package}"
    return f"install {debian}"
