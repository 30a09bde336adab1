"""Frames as a prefill node would send them for a prompt, without a model to read one."""

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hetero.errors import ConfigError
from hetero.kv.layout import KVLayout
from hetero.kv.rows import Kind, RowFrame, pack_rows
from hetero.messages import TransportName
from hetero.prefill.frame_plan import layer_groups, token_ranges
from hetero.transport.connection import MAX_ROWS_BYTES

FRAME_BYTES = 2 * 2**20  # of rows: what the prefill engines aim at, and NIXL's slots hold

_CHUNK_TOKENS = 512
_NUM_PACKS = 5

_KINDS: tuple[Kind, Kind] = ("k", "v")


@dataclass(frozen=True)
class PackedPrompt:
    frames: list[RowFrame]
    pack_bytes_per_s: list[float]  # of packed rows, K's and V's, on one thread; a sample each time


def check_frame_bytes(frame_bytes: int, layout: KVLayout, transport: TransportName) -> None:
    """Raises: ConfigError where a frame would hold no row, or more than a transport takes."""
    least = max(layout.k_row_bytes, layout.v_row_bytes)
    most = MAX_ROWS_BYTES if transport == "tcp" else FRAME_BYTES
    if not least <= frame_bytes <= most:
        raise ConfigError(
            f"frame-bytes: need {least} (one row) to {most} over {transport}, have {frame_bytes}"
        )


def packed_prompt(
    layout: KVLayout, num_tokens: int, frame_bytes: int = FRAME_BYTES
) -> PackedPrompt:
    """One chunk of one group of layers is packed from random values, and every frame holds a copy
    of its rows: memory of its own, for a wire must not find the same bytes in the caches again."""
    rng = np.random.default_rng(0)
    longest = min(_CHUNK_TOKENS, num_tokens)
    num_layers = len(layer_groups(layout, longest, frame_bytes)[0])
    values: dict[Kind, npt.NDArray[np.float32]] = {}
    for kind in _KINDS:
        head_dim = layout.head_dim_k if kind == "k" else layout.head_dim_v
        shape = (num_layers, longest, layout.num_kv_heads, head_dim)
        values[kind] = rng.standard_normal(shape, np.float32)
    rates = []
    for _ in range(_NUM_PACKS):
        started = time.perf_counter()
        packed = {kind: pack_rows(values[kind], kind, layout) for kind in _KINDS}
        seconds = time.perf_counter() - started
        rates.append(sum(rows.nbytes for rows in packed.values()) / seconds)
    frames: list[RowFrame] = []
    for first in range(0, num_tokens, _CHUNK_TOKENS):
        end = min(first + _CHUNK_TOKENS, num_tokens)
        for layers in layer_groups(layout, longest, frame_bytes):
            for kind in _KINDS:
                token_bytes = len(layers) * layout.row_bytes(kind)
                for tokens in token_ranges(first, end, token_bytes, frame_bytes):
                    rows = packed[kind][: len(layers), : len(tokens)].copy()
                    rows[..., -1] = len(frames) % 256  # so that one can't pass for another
                    frames.append(
                        RowFrame(
                            kind=kind,
                            first_layer=layers.start,
                            end_layer=layers.stop,
                            first_token=tokens.start,
                            end_token=tokens.stop,
                            rows=rows,
                        )
                    )
    return PackedPrompt(frames, rates)
