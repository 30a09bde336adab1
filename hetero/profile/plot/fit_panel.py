"""One fit as lines over its samples: decode over context, by batch; prefill over new tokens, by
what is cached."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hetero.profile.node_profile import EngineFit, Sample, chunk_work, step_work
from hetero.profile.plot.style import HELD_OUT, IN_FIT, log_axes, power_of_two_ticks, second_ticks
from hetero.profile.rates import count_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_LINES = 5
_STEPS = 80  # of a line


def draw_fit(axes: "Axes", fit: EngineFit) -> None:
    """Samples lie where their work puts them; masked cells beyond the line's are taken off, at
    what the fit gives for one."""
    from matplotlib import colormaps

    cache = "unified" if fit.unified else "streams"
    axes.set_title(f"{fit.role}, K {fit.kv_k}, V {fit.kv_v}\n{fit.engine} {fit.device}, {cache}")
    is_decode = fit.role == "decode"
    axes.set_xlabel("context of each sequence" if is_decode else "new tokens of a step")
    axes.set_ylabel("a step" if is_decode else "a chunk")
    log_axes(axes)
    groups = _groups(fit)
    most = max(_group(fit, sample) for sample in fit.samples)

    def colour(group: float) -> Any:
        return colormaps["viridis"](0.85 * math.log1p(group) / math.log1p(max(most, 1)))

    places = [_place(fit, sample) for sample in fit.samples]
    low, high = max(1.0, min(places)), max(places)
    for group in groups:
        points = list(_line(fit, group, low, high))
        xs, ys = [x for x, _ in points], [y for _, y in points]
        axes.plot(xs, ys, color=colour(group), linewidth=1.6, zorder=2)
        bounds = [[factor * y for y in ys] for factor in fit.interval]
        axes.fill_between(xs, *bounds, color=colour(group), alpha=0.15, linewidth=0)
        name = f"batch {group}" if is_decode else f"after {count_text(group)}"
        axes.annotate(
            name,
            (xs[-1], ys[-1]),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=colour(group),
        )
    for sample, place in zip(fit.samples, places, strict=True):
        least = _masked(fit, sample)
        seconds = sample.seconds * sample.speed - (sample.masked - least) * fit.cost.masked_s
        shade = colour(_group(fit, sample))
        if sample.held_out:
            axes.scatter(place, seconds, edgecolors=[shade], zorder=4, **HELD_OUT)
        else:
            axes.scatter(place, seconds, color=[shade], zorder=3, **IN_FIT)
    # Room for the names of the lines.
    axes.set_xlim(low / 1.2, high * (high / low) ** 0.3)
    power_of_two_ticks(axes.xaxis, low, high)
    second_ticks(axes.yaxis)


def _groups(fit: EngineFit) -> list[int]:
    """The batches, or cached tokens, that most samples have; evenly thinned."""
    found = sorted({_group(fit, sample) for sample in fit.samples if not sample.held_out})
    if len(found) <= _MAX_LINES:
        return found
    return [found[round(i * (len(found) - 1) / (_MAX_LINES - 1))] for i in range(_MAX_LINES)]


def _group(fit: EngineFit, sample: Sample) -> int:
    if fit.role == "decode":
        return sample.rows
    return max(0, round(sample.visible / sample.rows - (sample.rows + 1) / 2))


def _place(fit: EngineFit, sample: Sample) -> float:
    return sample.visible / sample.rows if fit.role == "decode" else float(sample.rows)


def _masked(fit: EngineFit, sample: Sample) -> float:
    """What the lines have: nobody else in the cache, and sequences of equal length."""
    if fit.role == "prefill":
        return chunk_work(sample.rows, 0, 0, fit.unified)[1]
    return sample.visible * (sample.rows - 1) if fit.unified else 0.0


def _line(fit: EngineFit, group: int, low: float, high: float) -> Iterator[tuple[float, float]]:
    for step in range(_STEPS + 1):
        place = low * (high / low) ** (step / _STEPS)
        if fit.role == "decode":
            visible, masked = step_work([round(place)] * group, 0, fit.unified)
            yield place, fit.cost.seconds(group, visible, masked)
        else:
            rows = max(1, round(place))
            yield float(rows), fit.cost.seconds(rows, *chunk_work(rows, group, 0, fit.unified))
