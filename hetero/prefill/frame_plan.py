"""How a computed chunk is cut into row frames. Sizes only: no tensors, no packing."""

from hetero.kv.layout import KVLayout


def layer_groups(layout: KVLayout, num_tokens: int, frame_bytes: int) -> list[range]:
    """As many consecutive layers at a time as fit a frame, at least one.

    K and V of a group leave together, so the wider of the two sets the size.
    """
    layer_bytes = num_tokens * max(layout.k_row_bytes, layout.v_row_bytes)
    size = max(1, frame_bytes // layer_bytes)
    return [
        range(first, min(first + size, layout.num_layers))
        for first in range(0, layout.num_layers, size)
    ]


def token_ranges(first: int, end: int, token_bytes: int, frame_bytes: int) -> list[range]:
    """Cut [first, end) where one frame can't hold it all, at least one token at a time."""
    size = max(1, frame_bytes // token_bytes)
    return [range(start, min(start + size, end)) for start in range(first, end, size)]
