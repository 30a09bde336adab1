"""Whether a decode node fits this machine: said before the kernel has to kill something."""

from pathlib import Path

from hetero.errors import PlanError
from hetero.kv.layout import KVLayout
from hetero.machine.free_memory import free_memory_bytes

_THIS_MACHINE = Path("/")


def check_memory(
    weight_bytes: int,
    layout: KVLayout,
    *,
    slots: int,
    context_tokens: int,
    num_nodes: int = 1,
    root: Path = _THIS_MACHINE,
) -> None:
    """Weights and cells against the memory that is free now. For nodes without a GPU.

    Raises: PlanError with need, have and what to lower, if more than is free, here or in this
    process's control group.
    """
    kv_bytes = slots * context_tokens * layout.token_bytes
    need_bytes = num_nodes * (weight_bytes + kv_bytes)
    have_bytes = free_memory_bytes(root)
    if need_bytes > have_bytes:
        raise PlanError(
            f"decode: need {need_bytes / 2**20:,.2f} MiB of memory for {num_nodes} node(s) with "
            f"{slots} slot(s) of {context_tokens} tokens, have {have_bytes / 2**20:,.2f} MiB "
            "free; lower the context, the slots or the KV types' bits"
        )
