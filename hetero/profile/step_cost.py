"""What a step of an engine costs: seconds of one pass over the weights, by what is in it.

    seconds = rows_s(rows) + visible * visible_s + masked * masked_s

rows      tokens computed in the step, of all sequences. `rows_s` reads every weight once and does
          each row's arithmetic: bound by bandwidth for few rows, by flops for many, with steps
          where a kernel's tiles fill up, so it is a line through knots, not a formula.
visible   pairs of a row and a cell that it attends to: bytes of K and V, and arithmetic on them
masked    pairs of a row and a cell that is scanned but not attended to: other sequences' cells in
          a unified cache, or the padding up to the longest sequence of the batch

Planning evaluates this on a laptop: nothing here needs an engine.
"""

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from hetero.profile.quantities import NotNegative, OneOrMore


class StepCost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Coefficients of the formula above, all seconds, none negative."""

    rows: list[OneOrMore]  # knots, ascending
    rows_s: list[NotNegative]  # at the knots; beyond the last, along the last two
    visible_s: NotNegative
    masked_s: NotNegative

    def __post_init__(self) -> None:
        if not self.rows or any(b <= a for a, b in pairwise(self.rows)):
            raise ValueError(f"rows: need one knot or more, ascending, have {self.rows}")
        if len(self.rows_s) != len(self.rows):
            raise ValueError(
                f"rows_s: need one for each of {len(self.rows)} knots, have {len(self.rows_s)}"
            )

    def seconds(self, num_rows: int, visible: float, masked: float) -> float:
        return self.rows_seconds(num_rows) + visible * self.visible_s + masked * self.masked_s

    def rows_seconds(self, num_rows: int) -> float:
        weights = hat_weights(self.rows, num_rows)
        return sum(weight * knot_s for weight, knot_s in zip(weights, self.rows_s, strict=True))


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
