"""Whether a node of some sizes fits into memory: said before the kernel has to kill something."""

from collections.abc import Iterable
from pathlib import Path

from hetero.errors import PlanError
from hetero.kv.layout import KVLayout
from hetero.machine.free_memory import free_memory_bytes
from hetero.model.spec import ModelSpec
from hetero.profile.node.points import Domain

_THIS_MACHINE = Path("/")

# float32 values of a row that llama.cpp's graph holds at once, about: the residual stream, its
# norm, Q, K, V and what attention gives; of the feed-forward part gate, up and their product.
_WIDE_VALUES, _FFN_VALUES = 8, 3
_VALUE_BYTES = 4

# llama.cpp rounds a sequence's cells up to it.
_CELLS_PADDING = 256


def check_memory(
    spec: ModelSpec, layouts: Iterable[KVLayout], domain: Domain, root: Path = _THIS_MACHINE
) -> int:
    """Bytes that a node of these sizes takes, at its largest types.

    Raises: PlanError if more than is free, here or in this process's control group.
    """
    need_bytes = node_bytes(spec, max(layout.token_bytes for layout in layouts), domain)
    have_bytes = free_memory_bytes(root)
    if need_bytes > have_bytes:
        raise PlanError(
            f"profile: need {need_bytes / 2**30:.1f} GiB of memory for the weights and "
            f"{domain.max_sequences} contexts of {domain.context_tokens} tokens, have "
            f"{have_bytes / 2**30:.1f} GiB free; fewer --slots or a shorter --context"
        )
    return need_bytes


def node_bytes(spec: ModelSpec, token_bytes: int, domain: Domain) -> int:
    """Weights, cells, one more context's state, from which others are restored, and what a step
    computes in."""
    cells = (domain.max_sequences + 1) * _context_cells(domain)
    return spec.weight_bytes + cells * token_bytes + compute_bytes(spec, domain)


def compute_bytes(spec: ModelSpec, domain: Domain) -> int:
    """Of the longest step: its rows, what each may attend to in a unified cache, and logits of each
    sequence, as computed and as handed out."""
    rows = max(domain.chunk_tokens, domain.max_sequences)
    ffn_size = spec.ffn_size * max(1, spec.num_experts_used)
    wide = max(spec.hidden_size, spec.num_heads * spec.head_dim_k)
    cells = domain.max_sequences * _context_cells(domain)
    # A row's mask is of float16.
    values = rows * (_WIDE_VALUES * wide + _FFN_VALUES * ffn_size + cells // 2)
    return _VALUE_BYTES * (values + 2 * domain.max_sequences * spec.vocab_size)


def _context_cells(domain: Domain) -> int:
    return -(-domain.context_tokens // _CELLS_PADDING) * _CELLS_PADDING
