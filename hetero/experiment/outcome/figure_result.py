"""What became of a figure; part of `result.json`."""

from typing import Literal

import msgspec

from hetero.experiment.outcome.measurements import Spread
from hetero.experiment.recipe.figures import Value

# Of the value, from end to end: an interval wider than that decides nothing.
MAX_WIDTH = 0.10


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """Of a figure along an axis. ratio: of a crossing's two arms; of a best figure's second best
    over its best. best: those that can't be told apart from the best, it first."""

    at: Value
    ratio: Spread | None
    best: list[Value] = []
    values: dict[str, Spread] = {}  # by what competes


class FigureResult(msgspec.Struct, frozen=True, kw_only=True):
    """value: None where a figure is no number (`best`), and where there is none to give: `text`
    then says what is known. low, high: of the 95% interval; None: it has no end there."""

    name: str
    kind: Literal["value", "ratio", "best", "crossing"]
    says: str
    metric: str
    unit: str
    value: float | None
    low: float | None
    high: float | None
    text: str  # the answer, with its interval and unit
    inconclusive: str  # why; "": it is not
    repetitions: list[float] = []  # the figure from each repetition alone
    points: list[Point] = []

    @property
    def line(self) -> str:
        verdict = f", inconclusive: {self.inconclusive}" if self.inconclusive else ""
        return f"{self.text}{verdict}"


def doubt(spread: Spread, count: int) -> str:
    """Why a number is inconclusive, or nothing: its interval is at most 10% of it, end to end.
    count: of the repetitions behind it."""
    if count < 2:
        return "one repetition, so no interval"
    if spread.low is None or spread.high is None:
        return "its interval has no end within what was measured"
    width = spread.high - spread.low
    if width <= MAX_WIDTH * abs(spread.value):
        return ""
    if not spread.value:
        return "its interval is wider than 0"
    return f"its interval is {width / abs(spread.value):.0%} of it wide"
