"""How llama.cpp's engine for CPUs attends to an f16 cache where a chunk fills a tile.

Rows of one head after the other are cut into equal parts, four for each thread, and a part's rows
of one head into tiles. A tile takes as long however few rows it has, and meets cells 64 at a time,
those alone that any of its rows attends to. Source: ggml-cpu/ops.cpp, flash_attn_ext_tiled.
"""

from functools import lru_cache

import msgspec

from hetero.profile.quantities import OneOrMore

TILE_ROWS = 64
_TILE_CELLS = 64
_PARTS_PER_THREAD = 4


class Tiling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What decides where the cuts are."""

    heads: OneOrMore
    threads: OneOrMore

    def pairs(self, rows: int, cells: int) -> float:
        """Of a chunk's rows and cells, if tiles were full; per head. cells: the chunk's too."""
        return _total_pairs(rows, cells, self.heads, self.threads) / self.heads


@lru_cache(maxsize=1 << 16)
def _total_pairs(rows: int, cells: int, heads: int, threads: int) -> int:
    total_rows = rows * heads
    part = -(-total_rows // (_PARTS_PER_THREAD * threads)) if threads > 1 else total_rows
    pairs = first = 0
    while first < total_rows:
        row = first % rows
        end_of_part = part * (first // part + 1)
        count = min(TILE_ROWS, rows - row, end_of_part - first)
        seen = cells - rows + row + count
        pairs += TILE_ROWS * _TILE_CELLS * -(-seen // _TILE_CELLS)
        first += count
    return pairs
