"""What is in one step of an engine, as counts that its cost is linear in."""

import math
from collections.abc import Sequence

import msgspec

from hetero.profile.knots import hat_weights
from hetero.profile.quantities import NotNegative, OneOrMore
from hetero.profile.tiling import TILE_ROWS

# Of contexts, in cells, for which it is known what a cell of them costs: the longer what one head
# reads before the next one reads its neighbours' bytes, the less of it is still in any cache.
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)

# llama.cpp multiplies repacked weights with so many rows at a time, the rest with one by one.
PACK_ROWS = 4

_LOG_LENGTHS = [math.log2(length) for length in LENGTHS]


class Work(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """rows     tokens computed, of all sequences
    pairs    of a row and a cell that it attends to, by LENGTHS: those of a context in between count
             for both neighbours, by its logarithm. A decode step in a unified cache has one:
             all that its batch attends to, since there each head reads all rows' cells before the
             next head does
    cells    that several rows attend to, so that they are read once for all of them; 0 in a decode
             step, where each sequence has one row
    masked   pairs of a row and a cell that is scanned but not attended to: other sequences' cells
             in a unified cache, or the padding up to the longest sequence of a batch. What comes
             after a row in its own chunk is not counted: its number follows from the rows
    """

    rows: OneOrMore
    pairs: tuple[NotNegative, ...]
    cells: NotNegative
    masked: NotNegative

    def __post_init__(self) -> None:
        if len(self.pairs) != len(LENGTHS):
            raise ValueError(f"pairs: need {len(LENGTHS)} numbers, have {len(self.pairs)}")

    @property
    def visible(self) -> float:
        return sum(self.pairs)

    @property
    def rest_rows(self) -> int:
        return self.rows % PACK_ROWS

    @property
    def fills_tile(self) -> bool:
        """Has as many rows of one sequence."""
        return self.cells > 0 and self.rows >= TILE_ROWS


def chunk_work(num_tokens: int, cached_tokens: int, other_cells: int, unified: bool) -> Work:
    """A prompt's chunk: row i sees the cached ones and i + 1 of its own, and scans others' in a
    shared cache."""
    row_cells = cached_tokens + (num_tokens + 1) / 2  # on average
    return Work(
        rows=num_tokens,
        pairs=_by_length([(num_tokens * row_cells, row_cells)]),
        cells=float(cached_tokens + num_tokens),
        masked=float(num_tokens * other_cells) if unified else 0.0,
    )


def step_work(contexts: Sequence[int], other_cells: int, unified: bool) -> Work:
    """A token for each sequence: in streams every row scans as many cells as the longest of the
    batch has, in a unified cache all cells in use."""
    visible = sum(contexts)
    scanned = visible + other_cells if unified else max(contexts)
    parts = [(visible, visible)] if unified else [(cells, cells) for cells in contexts]
    return Work(
        rows=len(contexts),
        pairs=_by_length(parts),
        cells=0.0,
        masked=float(len(contexts) * scanned - visible),
    )


def _by_length(parts: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    """parts: pairs, and the context that they are of."""
    totals = [0.0] * len(LENGTHS)
    for pairs, cells in parts:
        place = min(math.log2(max(1, cells)), _LOG_LENGTHS[-1])
        for index, weight in enumerate(hat_weights(_LOG_LENGTHS, place)):
            totals[index] += weight * pairs
    return tuple(totals)
