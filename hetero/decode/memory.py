"""Whether a decode node fits this machine: said before the kernel has to kill something."""

import psutil

from hetero.errors import PlanError
from hetero.kv.layout import KVLayout


def check_memory(
    weight_bytes: int, layout: KVLayout, *, slots: int, context_tokens: int, num_nodes: int = 1
) -> None:
    """Weights and cells against the memory that is available now. For nodes without a GPU.

    Raises: PlanError with need, have and what to lower.
    """
    kv_bytes = slots * context_tokens * layout.token_bytes
    need_bytes = num_nodes * (weight_bytes + kv_bytes)
    have_bytes = psutil.virtual_memory().available
    if need_bytes > have_bytes:
        raise PlanError(
            f"decode: need {need_bytes / 2**20:,.2f} MiB of memory for {num_nodes} node(s) with "
            f"{slots} slot(s) of {context_tokens} tokens, have {have_bytes / 2**20:,.2f} MiB "
            "available; lower the context, the slots or the KV types' bits"
        )
