"""The roofline: what the hardware allows at a given number of operations for each byte read."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from hetero.profile.node_profile import EngineFit, NodeProfile
from hetero.profile.plot.style import INK, colour_key, log_axes, say_instead
from hetero.profile.rates import (
    CONTEXT,
    Roof,
    count_text,
    has_known_work,
    matrix_flops,
    roof,
    step_bytes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_CHUNKS = (32, 128, 512, 2048)
_ROLES = {"decode": "o", "prefill": "s"}


class _Point(NamedTuple):
    label: str
    flops_per_byte: float
    tflops: float


def draw_roofline(axes: "Axes", profile: NodeProfile, colours: dict[str, str]) -> None:
    axes.set_title("roofline: matrix products of one step, under what the hardware gives")
    if not has_known_work(profile.model):
        say_instead(axes, "a mixture of experts: what a step reads\nis up to its router")
        return
    drawn = {id(fit): list(_points(profile, fit)) for fit in profile.fits}
    every = [point for points in drawn.values() for point in points]
    if not every:
        say_instead(axes, "no engine was measured")
        return
    axes.set_xlabel("operations per byte read")
    axes.set_ylabel("Tflop/s")
    log_axes(axes)
    devices = dict.fromkeys(fit.device for fit in profile.fits)
    roofs = [
        found
        for found in (roof(profile.ceilings, device) for device in devices)
        if found is not None
    ]
    ridges = [each.flops_per_s / each.bytes_per_s for each in roofs if each.flops_per_s]
    left = min(point.flops_per_byte for point in every) / 2
    right = 3 * max([point.flops_per_byte for point in every] + ridges)
    for each in roofs:
        _draw_roof(axes, each, left, right, named=len(roofs) > 1)
    labelled: set[str] = set()
    for fit in profile.fits:
        _draw_points(axes, fit, drawn[id(fit)], colours, with_labels=fit.role not in labelled)
        labelled.add(fit.role)
    axes.set_xlim(left, right)
    top = max([each.flops_per_s or 0.0 for each in roofs] + [1e12 * p.tflops for p in every])
    axes.set_ylim(min(point.tflops for point in every) / 2.5, top / 1e12 * 2)
    axes.legend(loc="lower right", fontsize=9)


def _points(profile: NodeProfile, fit: EngineFit) -> Iterator[_Point]:
    """Decode at several batches, all at one context; prefill of several chunks, nothing cached."""
    most = max((sample.work.rows for sample in fit.samples), default=fit.cost.rows[-1])
    for rows in _BATCHES if fit.role == "decode" else _CHUNKS:
        if rows > most:
            break
        if fit.role == "decode":
            seconds, cells, logits = fit.step_s([CONTEXT] * rows), rows * CONTEXT, rows
        else:
            seconds, cells, logits = fit.chunk_s(rows), rows, 1
        if seconds > 0:
            flops = matrix_flops(profile.model, rows, logits)
            num_bytes = step_bytes(profile.model, fit, rows, cells)
            yield _Point(count_text(rows), flops / num_bytes, flops / seconds / 1e12)


def _draw_points(
    axes: "Axes",
    fit: EngineFit,
    points: list[_Point],
    colours: dict[str, str],
    *,
    with_labels: bool,
) -> None:
    what = f"decode at {count_text(CONTEXT)}, by batch"
    if fit.role == "prefill":
        what = "prefill, by tokens of a chunk"
    axes.plot(
        [point.flops_per_byte for point in points],
        [point.tflops for point in points],
        marker=_ROLES[fit.role],
        markersize=7,
        markeredgecolor="white",
        color=colours[colour_key(fit)],
        linewidth=1,
        linestyle=":" if fit.source == "estimated" else "-",
        alpha=0.9,
        label=f"{what}: {fit.kv_k}/{fit.kv_v}, {fit.engine} {fit.device}",
        zorder=3,
    )
    for point in points if with_labels else ():
        axes.annotate(
            point.label,
            (point.flops_per_byte, point.tflops),
            xytext=(0, -14),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=INK,
        )


def _draw_roof(axes: "Axes", each: Roof, left: float, right: float, *, named: bool) -> None:
    slope = each.bytes_per_s / 1e12
    ridge = right if each.flops_per_s is None else each.flops_per_s / each.bytes_per_s
    axes.plot([left, ridge], [left * slope, ridge * slope], color=INK, linewidth=1.8)
    device = f"{each.device}: " if named else ""
    middle = math.sqrt(left * ridge)
    axes.annotate(
        f"{device}{each.bytes_per_s / 1e9:.3g} GB/s read",
        (middle, middle * slope),
        xytext=(-8, 4),
        textcoords="offset points",
        ha="right",
        color=INK,
    )
    if each.flops_per_s is not None:
        peak = each.flops_per_s / 1e12
        axes.plot([ridge, right], [peak, peak], color=INK, linewidth=1.8)
        axes.text(
            right / 1.08,
            peak * 1.1,
            f"{device}{peak:.3g} Tflop/s, {each.flops_type}",
            ha="right",
            color=INK,
        )
