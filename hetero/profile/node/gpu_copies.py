"""Copies between pinned host memory and a GPU: what a prefill on one does to this host's memory."""

from collections.abc import Callable
from importlib.util import find_spec

# A few milliseconds both ways, so that the shortest decode steps see several rounds.
_NUM_BYTES = 32 * 2**20


def gpu_copier() -> Callable[[], int] | None:
    """Copies to the first GPU that torch sees and back, and returns the bytes of both ways.
    None without one, or where it has no memory left."""
    if find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    try:
        host = torch.ones(_NUM_BYTES, dtype=torch.uint8).pin_memory()
        device = torch.empty_like(host, device="cuda:0")
    except RuntimeError:
        return None

    def copy() -> int:
        device.copy_(host, non_blocking=True)
        host.copy_(device, non_blocking=True)
        torch.cuda.synchronize(device.device)
        return 2 * _NUM_BYTES

    return copy
