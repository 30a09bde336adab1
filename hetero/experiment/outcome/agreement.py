"""Whether two runs of a recipe give the same answer, figure by figure.

Two numbers agree if the 95% interval of their difference contains 0 (of their ratio, by which
numbers above 0 are compared: 1): they are at most as far apart as the root of the summed squares of
how far each interval reaches towards the other number.
That is stricter than overlapping intervals, which only one equal pair in 170 would fail; to ask for
each number inside the other's interval would call one equal pair in six different. Of what is best,
ties agree with each of their members. A crossing that one run found and the other did not is a
disagreement, unless both are inconclusive.
"""

import math

import msgspec

from hetero.experiment.outcome.figure_result import FigureResult, Point
from hetero.experiment.outcome.result import Result


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """agree: None where neither says enough to disagree: without intervals. inconclusive: one of
    the two is, and agrees the more easily."""

    name: str
    says: str
    a: str
    b: str
    agree: bool | None
    inconclusive: bool
    note: str


def compare(a: Result, b: Result) -> list[Compared]:
    """Figures of both, in the first one's order."""
    others = {figure.name: figure for figure in b.figures}
    return [_compared(figure, others[figure.name]) for figure in a.figures if figure.name in others]


def differences(a: Result, b: Result) -> list[str]:
    """What makes the two hard to compare."""
    found = []
    if a.recipe_hash != b.recipe_hash:
        found.append(
            f"recipes differ: {a.recipe.name} {a.recipe_hash[:12]}, "
            f"{b.recipe.name} {b.recipe_hash[:12]}"
        )
    if a.model.get("hash") != b.model.get("hash") or a.model.get("name") != b.model.get("name"):
        found.append(f"models differ: {_model(a)}, {_model(b)}")
    if a.machine != b.machine or _processor(a) != _processor(b):
        found.append(
            f"machines differ: {a.machine} ({_processor(a)}), {b.machine} ({_processor(b)})"
        )
    for name, result in (("A", a), ("B", b)):
        found += [f"{name}: emulated: {device}" for device in result.emulated]
    only = {figure.name for figure in a.figures} ^ {figure.name for figure in b.figures}
    if only:
        found.append(f"figures of one only: {', '.join(sorted(only))}")
    return found


def _compared(a: FigureResult, b: FigureResult) -> Compared:
    agree, note = _agree(a, b)
    return Compared(
        name=a.name,
        says=a.says,
        a=a.line,
        b=b.line,
        agree=agree,
        inconclusive=bool(a.inconclusive or b.inconclusive),
        note=note,
    )


def _agree(a: FigureResult, b: FigureResult) -> tuple[bool | None, str]:
    if a.kind != b.kind or a.metric != b.metric:
        return False, "figures of different kinds"
    if a.kind == "best":
        agree, note = _best_agree(a.points, b.points)
        if not agree and (_is_single(a) or _is_single(b)):
            return None, "one repetition, so no interval"
        return agree, note
    if a.value is None or b.value is None:
        if a.value is None and b.value is None and _sides(a) == _sides(b):
            return True, ""
        if a.inconclusive and b.inconclusive:
            return None, "both inconclusive"
        return False, "not the same found"
    if len(a.repetitions) < 2 or len(b.repetitions) < 2:
        return (True, "") if a.value == b.value else (None, "one repetition, so no interval")
    apart = _apart(a, b) if a.value <= b.value else _apart(b, a)
    return apart <= 1, f"{apart:.1f} of the 95% interval of their difference apart"


def _apart(less: FigureResult, more: FigureResult) -> float:
    """Of the difference's interval; 0: equal, above 1: beyond it."""
    assert less.value is not None
    assert more.value is not None
    ends = (less.value, less.high, more.low, more.value)
    known = [math.inf if end is None else end for end in ends]
    positions = [math.log(end) for end in known] if min(known) > 0 else known
    distance = positions[3] - positions[0]
    # An interval without an end there reaches any number.
    reach_up = math.inf if less.high is None else positions[1] - positions[0]
    reach_down = math.inf if more.low is None else positions[3] - positions[2]
    reach = math.hypot(reach_up, reach_down)
    if not distance:
        return 0.0
    return distance / reach if reach else math.inf


def _sides(figure: FigureResult) -> list[bool] | str:
    """On which sides of 1 the ratios of a crossing are that was not found; else why there is
    nothing."""
    sides = {point.ratio.value > 1 for point in figure.points if point.ratio is not None}
    return sorted(sides) or figure.text


def _is_single(figure: FigureResult) -> bool:
    return any(
        len(each.repetitions) < 2 for point in figure.points for each in point.values.values()
    )


def _best_agree(a: list[Point], b: list[Point]) -> tuple[bool, str]:
    others = {point.at: point for point in b}
    both = [(point, others[point.at]) for point in a if point.at in others]
    if not both:
        return False, "no place in common"
    apart = [str(one.at) for one, other in both if not set(one.best) & set(other.best)]
    return (False, f"another is best at {', '.join(apart)}") if apart else (True, "")


def _model(result: Result) -> str:
    return f"{result.model.get('name')} {str(result.model.get('hash'))[:12]}"


def _processor(result: Result) -> str:
    return str(result.provenance.get("machine", {}).get("cpu"))
