"""Whether Triton's kernels can run on a device, and if not, why."""

import importlib.util
import os
import shutil

import torch

# Below it Triton has no matrix instructions to compile for.
# Source: the README of Triton, "Compatibility".
MIN_CAPABILITY = (8, 0)

# The interpreter's answer where there is no chip to ask.
_INTERPRETED_CAPABILITY = 80


def triton_problem(device: torch.device) -> str | None:
    """Why Triton can't run there, or None."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type == "cpu":
        if interpreted:
            return None
        return "Triton needs a GPU; on a CPU set TRITON_INTERPRET=1, for tests: it is very slow"
    if interpreted:
        return "TRITON_INTERPRET=1 is set, which is for machines without a GPU: unset it"
    have = torch.cuda.get_device_capability(device)
    if have < MIN_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        return f"Triton needs compute capability 8.0, {name} has {have[0]}.{have[1]}"
    if not any(map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))):
        return "Triton needs a C compiler to start kernels: apt-get install gcc"
    return None


def capability(device: torch.device) -> int:
    """Of the GPU, as 90 for 9.0."""
    if device.type == "cpu":
        return _INTERPRETED_CAPABILITY
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
