"""What a step of an engine costs: seconds of one pass over the weights, by what is in it.

    seconds = rows_s(rows) + rest rows * rest_s

    and of attention, where a sequence has fewer than 64 rows
              sum(pairs * pair_s) + cells * cell_s + deep cells * deep_cell_s + masked * masked_s
    or more   visible * wide_pair_s + tile pairs * tile_pair_s + cells * tile_cell_s
              + masked * tile_masked_s

`rows_s` reads every weight once and does each row's arithmetic: bound by bandwidth for few rows, by
flops for many, so it is a line through knots, not a formula; `rest_s` is what each row beyond the
last four costs more, where weights are repacked to meet four at a time. The others are bytes of K
and V, and arithmetic on them: a cell that many rows attend to is read once, and the deeper a
context, the less of it is in any cache. What a step's work is, `hetero.profile.work` counts.

Planning evaluates this on a laptop: nothing here needs an engine.
"""

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from hetero.profile.quantities import NotNegative, OneOrMore
from hetero.profile.work import DEPTHS, Work


class StepCost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Coefficients of the formula above, all seconds, none negative."""

    rows: list[OneOrMore]  # knots, ascending
    rows_s: list[NotNegative]  # at the knots; beyond the last, along the last two, never down
    rest_s: NotNegative
    pair_s: list[NotNegative]  # by depth
    wide_pair_s: NotNegative
    tile_pair_s: NotNegative
    cell_s: NotNegative
    deep_cell_s: NotNegative  # in addition, of those beyond the first depth
    tile_cell_s: NotNegative
    masked_s: NotNegative
    tile_masked_s: NotNegative

    def __post_init__(self) -> None:
        if not self.rows or any(b <= a for a, b in pairwise(self.rows)):
            raise ValueError(f"rows: need one knot or more, ascending, have {self.rows}")
        for name, need in (("rows_s", self.rows), ("pair_s", DEPTHS)):
            have = len(getattr(self, name))
            if have != len(need):
                raise ValueError(f"{name}: need {len(need)} numbers, have {have}")

    def seconds(self, work: Work) -> float:
        return self.rows_seconds(work) + sum(
            count * each_s
            for count, each_s in zip(attention_counts(work), self.attention_s, strict=True)
        )

    def rows_seconds(self, work: Work) -> float:
        """Of a step without any attention."""
        weights = hat_weights(self.rows, work.rows)
        line_s = sum(weight * knot_s for weight, knot_s in zip(weights, self.rows_s, strict=True))
        if work.rows > self.rows[-1]:
            line_s = max(line_s, self.rows_s[-1])  # noise may let the last two fall
        return line_s + work.rest_rows * self.rest_s

    @property
    def attention_s(self) -> list[float]:
        """In the order of `attention_counts`."""
        return [
            *self.pair_s,
            self.wide_pair_s,
            self.tile_pair_s,
            self.cell_s,
            self.deep_cell_s,
            self.tile_cell_s,
            self.masked_s,
            self.tile_masked_s,
        ]


def plain_cost(
    rows: Sequence[int], rows_s: Sequence[float], *, pair_s: float, masked_s: float
) -> StepCost:
    """Where neither depth nor tiles make a difference: of datasheets, nothing more is known."""
    return StepCost(
        rows=list(rows),
        rows_s=list(rows_s),
        rest_s=0.0,
        pair_s=[pair_s] * len(DEPTHS),
        wide_pair_s=pair_s,
        tile_pair_s=0.0,
        cell_s=0.0,
        deep_cell_s=0.0,
        tile_cell_s=0.0,
        masked_s=masked_s,
        tile_masked_s=masked_s,
    )


def attention_counts(work: Work) -> list[float]:
    """What the coefficients other than those of rows are multiplied by."""
    none = [0.0] * len(DEPTHS)
    if work.is_tiled:
        return [*none, work.visible, work.tile_pairs, 0.0, 0.0, work.cells, 0.0, work.masked]
    deep_cells = max(0.0, work.cells - DEPTHS[1])
    return [*work.pairs, 0.0, 0.0, work.cells, deep_cells, 0.0, work.masked, 0.0]


def hat_weights(knots: Sequence[int], num_rows: int) -> list[float]:
    """How much each knot counts at `num_rows`: linear between knots and beyond the last one,
    constant below the first."""
    weights = [0.0] * len(knots)
    if len(knots) == 1 or num_rows <= knots[0]:
        weights[0] = 1.0
        return weights
    upper = next((i for i, knot in enumerate(knots) if knot >= num_rows), len(knots) - 1)
    span = knots[upper] - knots[upper - 1]
    share = (num_rows - knots[upper - 1]) / span
    weights[upper - 1], weights[upper] = 1 - share, share
    return weights
