"""A chunk of a prompt's rows out of a unified llama.cpp cache.

Its cells are lent to a scratch sequence at no cost, and that sequence's state is the chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hetero.kv.layout import KVLayout
from hetero.kv.rows import Kind, RowFrame
from hetero.kv.staging import StateLayout, read_state
from hetero.llama.context import Context
from hetero.prefill.frame_plan import layer_groups, token_ranges

_KINDS: tuple[Kind, Kind] = ("k", "v")


@dataclass(frozen=True)
class ExportedChunk:
    """The state of some positions of one sequence, and where its rows lie."""

    layout: KVLayout
    positions: range
    blob: npt.NDArray[np.uint8]
    state: StateLayout

    def frames(self, frame_bytes: int) -> Iterator[RowFrame]:
        """Of as many layers as `frame_bytes` holds, K and V apart."""
        first, end = self.positions.start, self.positions.stop
        for layers in layer_groups(self.layout, end - first, frame_bytes):
            for kind in _KINDS:
                row_bytes = len(layers) * self.layout.row_bytes(kind)
                rows = [self.state.rows(self.blob, kind, layer) for layer in layers]
                for tokens in token_ranges(first, end, row_bytes, frame_bytes):
                    part = slice(tokens.start - first, tokens.stop - first)
                    yield RowFrame(
                        kind=kind,
                        first_layer=layers.start,
                        end_layer=layers.stop,
                        first_token=tokens.start,
                        end_token=tokens.stop,
                        rows=np.stack([layer_rows[part] for layer_rows in rows]),
                    )


def export_chunk(
    context: Context, layout: KVLayout, sequence: int, scratch: int, positions: range
) -> ExportedChunk:
    """scratch: a sequence of the same unified cache, empty before and after."""
    context.copy_sequence(sequence, scratch, positions.start, positions.stop)
    blob = context.export_sequence(scratch)
    context.remove_sequence(scratch)
    return ExportedChunk(layout, positions, blob, read_state(blob, layout, positions))
