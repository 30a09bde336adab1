"""What each GPU gives to torch: copies, matrix products by type, and the way to and from pinned
host memory. On the device's own clock, medians of a few.
"""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from hetero.profile.ceilings.flops import product_flops
from hetero.profile.node_profile import GPUCeilings

if TYPE_CHECKING:
    import torch

_REPEATS = 5

# Beyond any cache of a GPU; less where it has little memory free.
_COPY_BYTES = 512 * 2**20
_HOST_BYTES = 256 * 2**20

# Sizes double until a product takes so long: some types are 64 times slower than others.
_LEAST_S = 0.01
_FIRST_ROWS, _MOST_ROWS = 1024, 8192

_TENSOR_FLOAT_32 = (8, 0)  # the first compute capability that has it


def gpu_ceilings(task: object = None) -> list[GPUCeilings]:
    """Of each device that torch sees, one after the other; empty without any, or without torch.

    task: not used; workers pass it. Run in a process of its own: a device's context stays until
    the process ends.
    """
    try:
        import torch
    except ImportError:
        return []
    if not torch.cuda.is_available():
        return []
    return [_device_ceilings(index) for index in range(torch.cuda.device_count())]


def _device_ceilings(index: int) -> GPUCeilings:
    import torch

    with torch.cuda.device(index):
        copy_gb_s, to_device_gb_s, from_device_gb_s = _copies_gb_s()
        return GPUCeilings(
            name=torch.cuda.get_device_name(),
            copy_gb_s=copy_gb_s,
            tflops=_tflops(),
            to_device_gb_s=to_device_gb_s,
            from_device_gb_s=from_device_gb_s,
        )


def _copies_gb_s() -> tuple[float, float, float]:
    """On the device, read and written; to it; from it."""
    import torch

    free_bytes, _ = torch.cuda.mem_get_info()
    num_bytes = min(_COPY_BYTES, free_bytes // 8)
    host_bytes = min(_HOST_BYTES, num_bytes)
    source, target = (torch.ones(num_bytes, dtype=torch.uint8, device="cuda") for _ in range(2))
    host = torch.ones(host_bytes, dtype=torch.uint8).pin_memory()
    part = source[:host_bytes]
    return (
        2 * num_bytes / _seconds(lambda: target.copy_(source)) / 1e9,
        host_bytes / _seconds(lambda: part.copy_(host, non_blocking=True)) / 1e9,
        host_bytes / _seconds(lambda: host.copy_(part, non_blocking=True)) / 1e9,
    )


def _tflops() -> dict[str, float]:
    """By type; one that the device or torch can't multiply is missing."""
    import torch

    types = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
    if torch.version.hip is None and torch.cuda.get_device_capability() >= _TENSOR_FLOAT_32:
        types["tf32"] = torch.float32
    tflops = {}
    before = torch.get_float32_matmul_precision()
    for name, dtype in types.items():
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        try:
            tflops[name] = _product_flops_per_s(dtype) / 1e12
        except RuntimeError:
            continue
        finally:
            torch.set_float32_matmul_precision(before)
    return tflops


def _product_flops_per_s(dtype: "torch.dtype") -> float:
    import torch

    rows = _FIRST_ROWS
    while True:
        # Random: a device draws less power on zeros, and runs faster.
        left, right = (torch.randn(rows, rows, device="cuda").to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        seconds = _seconds(partial(torch.mm, left, right, out=out))
        if seconds >= _LEAST_S or 2 * rows > _MOST_ROWS:
            return product_flops(rows) / seconds
        rows *= 2


def _seconds(queue: Callable[[], object]) -> float:
    """Of what `queue` has the device do, after a first time that does not count."""
    import torch

    queue()
    samples = []
    for _ in range(_REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        queue()
        end.record()
        end.synchronize()
        samples.append(float(start.elapsed_time(end)) / 1000)
    return median(samples)
