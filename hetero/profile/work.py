"""What is in one step of an engine, as counts that its cost is linear in."""

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from hetero.profile.quantities import NotNegative, OneOrMore

# Where a context's parts begin, in cells: the longer what one head reads before the next one reads
# its neighbours' bytes, the less of it is still in any cache.
DEPTHS = (0, 1024, 2048, 4096, 8192, 16384)

# llama.cpp multiplies repacked weights with so many rows at a time, the rest with one by one.
PACK_ROWS = 4

# llama.cpp attends in tiles of so many rows of a sequence where a step has as many, on f16 caches.
TILE_ROWS = 64


class Work(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """rows     tokens computed, of all sequences
    pairs    of a row and a cell that it attends to, by the cell's depth: in its sequence, but in a
             unified cache in all that the batch attends to, since there each head reads all rows'
             cells before the next head does
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
        if len(self.pairs) != len(DEPTHS):
            raise ValueError(f"pairs: need {len(DEPTHS)} numbers, have {len(self.pairs)}")

    @property
    def visible(self) -> float:
        return sum(self.pairs)

    @property
    def rest_rows(self) -> int:
        return self.rows % PACK_ROWS

    @property
    def is_tiled(self) -> bool:
        return self.cells > 0 and self.rows >= TILE_ROWS

    @property
    def tile_pairs(self) -> float:
        """Visible pairs, if the last tile's rows were all there."""
        return self.visible / self.rows * TILE_ROWS * -(-self.rows // TILE_ROWS)


def chunk_work(num_tokens: int, cached_tokens: int, other_cells: int, unified: bool) -> Work:
    """A prompt's chunk: row i sees the cached ones and i + 1 of its own, and scans others' in a
    shared cache."""
    above = [_pairs_beyond(depth, num_tokens, cached_tokens) for depth in DEPTHS]
    return Work(
        rows=num_tokens,
        pairs=_parts(above),
        cells=float(cached_tokens + num_tokens),
        masked=float(num_tokens * other_cells) if unified else 0.0,
    )


def step_work(contexts: Sequence[int], other_cells: int, unified: bool) -> Work:
    """A token for each sequence: in streams every row scans as many cells as the longest of the
    batch has, in a unified cache all cells in use."""
    parts = [sum(contexts)] if unified else contexts
    above = [float(sum(max(0, cells - depth) for cells in parts)) for depth in DEPTHS]
    scanned = above[0] + other_cells if unified else max(contexts)
    return Work(
        rows=len(contexts),
        pairs=_parts(above),
        cells=0.0,
        masked=float(len(contexts) * scanned - above[0]),
    )


def _pairs_beyond(depth: int, num_tokens: int, cached_tokens: int) -> float:
    """Of a chunk, with cells deeper than `depth`: a sum of successive integers."""
    last = cached_tokens + num_tokens - depth
    first = max(1, cached_tokens + 1 - depth)
    return (first + last) * (last - first + 1) / 2 if last >= first else 0.0


def _parts(above: Sequence[float]) -> tuple[float, ...]:
    return tuple(more - less for more, less in pairwise([*above, 0.0]))
