"""What work takes at least, by arithmetic alone: operations and bytes.

A multiplication and the addition of its product are two operations. Bytes are those that must cross
the memory bus: every input read once, every output written once.
"""

import gguf

from hetero.kv.types import kv_type
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import ModelSpec

_POSITION_BYTES = _CELL_BYTES = _ANGLE_BYTES = 4  # int32, int32, float32


def visible_pairs(first: int, end: int) -> int:
    """(query, key) pairs of new tokens [first, end): each sees its prompt up to itself."""
    return (first + 1 + end) * (end - first) // 2


def attention_flops(num_heads: int, head_dim: int, num_pairs: int) -> int:
    """Scores and the weighted sum of values: two products of `head_dim` per head and pair.

    The softmax is not counted, nor what a kernel computes beyond the diagonal.
    Source: FlashAttention-2, arXiv:2307.08691, section 4.1.
    """
    return 4 * num_heads * head_dim * num_pairs


def matmul_flops(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns


def pack_bytes(num_rows: int, row_values: int, type_name: str, element_bytes: int) -> int:
    """Values in, rows of a cache type out."""
    return num_rows * (row_values * element_bytes + kv_type(type_name).row_bytes(row_values))


def dequantize_bytes(num_values: int, kind: gguf.GGMLQuantizationType, element_bytes: int) -> int:
    """Blocks in, values out."""
    block_values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    return int(num_values // block_values * block_bytes) + num_values * element_bytes


def norm_bytes(num_tokens: int, hidden: int, element_bytes: int) -> int:
    """A row in, a row out, and the weights."""
    return (2 * num_tokens + 1) * hidden * element_bytes


def add_norm_bytes(num_tokens: int, hidden: int, element_bytes: int) -> int:
    """Residual and addend in, sum and norm out, and the weights."""
    return (4 * num_tokens + 1) * hidden * element_bytes


def silu_mul_bytes(num_tokens: int, ffn: int, element_bytes: int) -> int:
    """Gate and up in, their product out."""
    return 3 * num_tokens * ffn * element_bytes


def rope_bytes(
    num_tokens: int, num_heads: int, num_kv_heads: int, head_dim: int, element_bytes: int
) -> int:
    """Q, K and V in and out; a cosine and a sine per pair of dims; a token's position and cell."""
    values = (num_heads + 2 * num_kv_heads) * head_dim
    angles = 2 * head_dim // 2 * _ANGLE_BYTES
    return num_tokens * (2 * values * element_bytes + angles + _POSITION_BYTES + _CELL_BYTES)


def prefill_flops(spec: ModelSpec, num_tokens: int) -> int:
    """A whole prompt in one step, as far as it must be computed.

    Every token passes every matrix, but those of the last layer after its K and V, and the output
    matrix, which are computed for the last token alone.
    """
    q_size = spec.num_heads * spec.head_dim_k
    kv_size = spec.num_kv_heads * (spec.head_dim_k + spec.head_dim_v)
    qkv = spec.hidden_size * (q_size + kv_size)
    rest = spec.hidden_size * (q_size + 3 * spec.ffn_size)
    full_layers = spec.num_layers - 1
    products = (
        spec.num_layers * num_tokens * qkv
        + (full_layers * num_tokens + 1) * rest
        + spec.hidden_size * spec.vocab_size
    )
    pairs = full_layers * visible_pairs(0, num_tokens) + num_tokens
    return 2 * products + attention_flops(spec.num_heads, spec.head_dim_k, pairs)


def stored_layer_bytes(file: GGUFFile) -> int:
    """The layers' matrices as stored: what a step over streamed weights copies."""
    return sum(
        tensor.num_bytes
        for name, tensor in file.tensors.items()
        if name.startswith("blk.") and len(tensor.shape) == 2
    )


def streamed_step_s(
    num_bytes: int, num_flops: int, bytes_per_s: float, flops_per_s: float
) -> float:
    """Copies and arithmetic run side by side: the longer one is the least a step takes."""
    return max(num_bytes / bytes_per_s, num_flops / flops_per_s)
