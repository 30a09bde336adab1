"""One fit as lines over its samples: a decode step's time over context, by batch; a prefill
step's rate over its new tokens, by what is cached."""

import math
from typing import TYPE_CHECKING, Any

from hetero.profile.node_profile import EngineFit, Sample
from hetero.profile.plot.style import (
    DRAWN,
    PLACED,
    log_time_axis,
    power_of_two_axis,
)
from hetero.profile.rates import count_text
from hetero.profile.work import chunk_work, step_work

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_LINES = 5
_STEPS = 80  # of a line

# Of the panel's height, between the names of two lines.
_NAME_DISTANCE = 0.055


def draw_fit(axes: "Axes", fit: EngineFit) -> None:
    """Bands and bars: the interval. Samples lie where their work puts them; masked cells beyond
    a line's are taken off, at what the fit gives for one."""
    cache = "unified" if fit.unified else "streams"
    axes.set_title(f"{fit.role}, K {fit.kv_k}, V {fit.kv_v}\n{fit.engine} {fit.device}, {cache}")
    places = [_place(fit, sample) for sample in fit.samples]
    low, high = max(1.0, min(places)), max(places)
    power_of_two_axis(axes, low, high)
    shades = _Shades(max(_group(fit, sample) for sample in fit.samples))
    ends = []
    for group in _groups(fit):
        end = _draw_line(axes, fit, group, low, high, shades)
        ends.append((end, group))
    for sample, place in zip(fit.samples, places, strict=True):
        _draw_sample(axes, fit, sample, place, shades)
    if fit.role == "decode":
        axes.set_xlabel("context of each sequence")
        axes.set_ylabel("time of a step")
        log_time_axis(axes)
    else:
        axes.set_xlabel("new tokens of a step")
        axes.set_ylabel("tokens/s")
        axes.set_ylim(bottom=0)
    _name_lines(axes, fit, ends, high, shades)


class _Shades:
    """Light is large."""

    def __init__(self, most: int) -> None:
        from matplotlib import colormaps

        self._map = colormaps["viridis"]
        self._most = math.log1p(max(most, 1))

    def __call__(self, group: int) -> Any:
        return self._map(0.82 * min(1.0, math.log1p(group) / self._most))


def _draw_line(
    axes: "Axes", fit: EngineFit, group: int, low: float, high: float, shades: _Shades
) -> float:
    """Returns its right end."""
    places = [low * (high / low) ** (step / _STEPS) for step in range(_STEPS + 1)]
    if fit.role == "decode":
        seconds = [fit.step_s([round(place)] * group) for place in places]
    else:
        places = [float(max(1, round(place))) for place in places]
        seconds = [fit.chunk_s(int(place), group) for place in places]
    pairs = list(zip(places, seconds, strict=True))
    heights = [_height(fit, place, each) for place, each in pairs]
    least, most = (
        [_height(fit, place, factor * each) for place, each in pairs] for factor in fit.interval
    )
    axes.plot(places, heights, color=shades(group), linewidth=1.6, zorder=2)
    axes.fill_between(places, least, most, color=shades(group), alpha=0.15, linewidth=0)
    return heights[-1]


def _draw_sample(
    axes: "Axes", fit: EngineFit, sample: Sample, place: float, shades: _Shades
) -> None:
    shade = shades(_group(fit, sample))
    cost = fit.cost
    beyond = sample.work.masked - _line_masked(fit, sample)
    beyond_s = beyond * cost.masked_pair_s(sample.work)
    height = _height(fit, sample.work.rows, sample.undisturbed_s - beyond_s)
    if not sample.drawn:
        axes.scatter(place, height, color=[shade], zorder=3, **PLACED)
        return
    # Between two lines: its own interval shows what the fit gives for it.
    predicted_s = fit.cost.seconds(sample.work)
    ends = [
        _height(fit, sample.work.rows, factor * predicted_s - beyond_s) for factor in fit.interval
    ]
    axes.vlines(place, min(ends), max(ends), colors=[shade], alpha=0.3, linewidth=7)
    axes.scatter(place, height, edgecolors=[shade], zorder=4, **DRAWN)


def _name_lines(
    axes: "Axes", fit: EngineFit, ends: list[tuple[float, int]], right: float, shades: _Shades
) -> None:
    """At their ends, pushed apart where two would overlap."""
    to_share = axes.transData + axes.transAxes.inverted()
    lowest = -1.0
    for end, group in sorted(ends):
        lowest = max(to_share.transform((right, end))[1], lowest + _NAME_DISTANCE)
        name = f"batch {group}" if fit.role == "decode" else f"{count_text(group)} cached"
        axes.annotate(
            name,
            (right, lowest),
            xycoords=("data", "axes fraction"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=shades(group),
        )


def _height(fit: EngineFit, rows: float, seconds: float) -> float:
    if fit.role == "decode":
        return seconds
    return rows / seconds if seconds > 0 else math.nan


def _groups(fit: EngineFit) -> list[int]:
    """The batches, or cached tokens, of the samples that were placed, evenly thinned."""
    found = sorted({_group(fit, sample) for sample in fit.samples if not sample.drawn})
    if len(found) <= _MAX_LINES:
        return found
    return [found[round(i * (len(found) - 1) / (_MAX_LINES - 1))] for i in range(_MAX_LINES)]


def _group(fit: EngineFit, sample: Sample) -> int:
    if fit.role == "decode":
        return sample.work.rows
    return max(0, round(sample.work.visible / sample.work.rows - (sample.work.rows + 1) / 2))


def _place(fit: EngineFit, sample: Sample) -> float:
    return (
        sample.work.visible / sample.work.rows if fit.role == "decode" else float(sample.work.rows)
    )


def _line_masked(fit: EngineFit, sample: Sample) -> float:
    """With nobody else in the cache, and sequences of equal length."""
    if fit.role == "prefill":
        return chunk_work(sample.work.rows, 0, 0, fit.unified).masked
    context = round(sample.work.visible / sample.work.rows)
    return step_work([context] * sample.work.rows, 0, fit.unified).masked
