"""The linear system that coefficients of StepCost are fitted by: its columns, and its priors.

Unknown are, and none is negative, so more rows never cost less, nor a longer context's cells:
    of all caches         what each knot of rows adds to the one before it; rest rows
    of each pair of types a row, beside the knots'; a pair at the first length, and what each later
                          length adds to it; a cell, a deep cell; a pair in tiles
    of streams, of pools  a row, beside the knots'
    of each cache         a masked pair, and one in tiles
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hetero.profile.knots import hat_weights
from hetero.profile.node.cache import Cache, Samples
from hetero.profile.step_cost import StepCost, TileCost, plain_counts, tile_counts
from hetero.profile.tiling import Tiling
from hetero.profile.work import LENGTHS, Work

# What a straight line weighs, through the knots of rows or of lengths, as a share of a sample: the
# noise of a sample, 3%, over how far a knot strays from its neighbours' line, 20%.
_STRAIGHT = 0.15

# What holds rows of one cache to those of another: a tenth of the seconds that most rows take
# weighs as much as an error of a fiftieth in one sample.
_ALIKE = 0.2

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _OfTypes:
    row: int
    lengths: slice
    cell: int
    deep_cell: int
    tile_pair: int


@dataclass(frozen=True)
class _Masked:
    pair: int
    tile_pair: int


class Columns:
    """Which column is which coefficient. Lines are of shape (count,)."""

    def __init__(self, caches: Sequence[Cache], knots: Sequence[int]) -> None:
        self.count = 0
        self._knots = list(knots)
        self._rows = self._several(len(knots))
        self._rest = self._one()
        types = dict.fromkeys(cache.types for cache in caches)
        self._types = {each: self._of_types() for each in types}
        self._mode_row = {unified: self._one() for unified in (False, True)}
        self._masked = {cache: _Masked(self._one(), self._one()) for cache in caches}

    def line(self, cache: Cache, work: Work) -> _Floats:
        """What each coefficient is multiplied by in a step."""
        line = np.zeros(self.count)
        line[self._rows] = _from_each_on(hat_weights(self._knots, work.rows))
        line[self._rest] = work.rest_rows
        of_types, masked = self._types[cache.types], self._masked[cache]
        line[of_types.row] = line[self._mode_row[cache.unified]] = work.rows
        tiling = cache.tiling_of(work)
        if tiling is not None:
            line[of_types.tile_pair], line[masked.tile_pair] = tile_counts(work, tiling)
        else:
            *pairs, cells, deep_cells, masked_pairs = plain_counts(work)
            line[of_types.lengths] = _from_each_on(pairs)
            line[of_types.cell], line[of_types.deep_cell] = cells, deep_cells
            line[masked.pair] = masked_pairs
        return line

    def priors(self, samples: Samples) -> list[_Floats]:
        """Lines whose products with the solution should be zero; weighted."""
        return [
            *self._straight_rows(samples),
            *self._straight_lengths(samples),
            *self._alike(samples),
        ]

    def cost(self, cache: Cache, solution: _Floats, tiling: Tiling | None) -> StepCost:
        """What no sample tells is like what is nearest: a length like the one before it, many rows
        like few. tiling: None where no sample was in tiles."""
        of_types, masked = self._types[cache.types], self._masked[cache]
        row_s = solution[of_types.row] + solution[self._mode_row[cache.unified]]
        rows_s = np.cumsum(solution[self._rows]) + row_s * np.array(self._knots)
        tiles = None
        if tiling is not None:
            tiles = TileCost(
                tiling=tiling,
                pair_s=float(solution[of_types.tile_pair]),
                masked_s=float(solution[masked.tile_pair]),
            )
        return StepCost(
            rows=self._knots,
            rows_s=rows_s.tolist(),
            rest_s=float(solution[self._rest]),
            pair_s=np.cumsum(solution[of_types.lengths]).tolist(),
            cell_s=float(solution[of_types.cell]),
            deep_cell_s=float(solution[of_types.deep_cell]),
            masked_s=float(solution[masked.pair]),
            tiles=tiles,
        )

    def _straight_rows(self, samples: Samples) -> Iterator[_Floats]:
        """How far a knot strays from its neighbours' line, as a share of its seconds."""
        for index in range(1, len(self._knots) - 1):
            low, knot, high = self._knots[index - 1 : index + 2]
            at_knot_s = min(
                sample.undisturbed_s
                for of_cache in samples.values()
                for sample in of_cache
                if sample.work.rows == knot
            )
            share = (knot - low) / (high - low)
            yield self._bend(self._rows, index, share, at_knot_s)

    def _straight_lengths(self, samples: Samples) -> Iterator[_Floats]:
        """The same of what a cell costs by length, as a share of the least that any step took for
        one; as far as there are samples."""
        for types, of_types in self._types.items():
            plain = [
                sample
                for cache, of_cache in samples.items()
                if cache.types == types
                for sample in of_cache
                if sample.work.visible and cache.tiling_of(sample.work) is None
            ]
            if not plain:
                continue
            cell_s = min(sample.undisturbed_s / sample.work.visible for sample in plain)
            longest = max(
                index for sample in plain for index, pairs in enumerate(sample.work.pairs) if pairs
            )
            for index in range(1, longest):
                yield self._bend(of_types.lengths, index, 0.5, cell_s)

    def _bend(self, knots: slice, index: int, share: float, seconds: float) -> _Floats:
        """How far a knot strays, in `seconds`. share: of the way between its neighbours that is
        before it."""
        line = np.zeros(self.count)
        line[knots][index : index + 2] = 1 - share, -share
        return _STRAIGHT / seconds * line

    def _alike(self, samples: Samples) -> Iterator[_Floats]:
        """Rows of one cache cost what another's do: the knots have rows already."""
        every = [sample for of_cache in samples.values() for sample in of_cache]
        most = max(every, key=lambda each: (each.work.rows, -each.undisturbed_s))
        of_types = (each.row for each in self._types.values())
        for column in (*of_types, *self._mode_row.values()):
            line = np.zeros(self.count)
            line[column] = _ALIKE * most.work.rows / most.undisturbed_s
            yield line

    def _of_types(self) -> _OfTypes:
        return _OfTypes(
            row=self._one(),
            lengths=self._several(len(LENGTHS)),
            cell=self._one(),
            deep_cell=self._one(),
            tile_pair=self._one(),
        )

    def _one(self) -> int:
        self.count += 1
        return self.count - 1

    def _several(self, count: int) -> slice:
        self.count += count
        return slice(self.count - count, self.count)


def _from_each_on(weights: Sequence[float]) -> _Floats:
    """Of increments: each counts for its own knot and all that come after it."""
    return np.cumsum(weights[::-1])[::-1]
