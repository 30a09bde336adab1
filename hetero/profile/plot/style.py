"""What all panels share: colours, sizes, and how sizes are written on an axis."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hetero.profile.node_profile import EngineFit
from hetero.profile.rates import count_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT = "#222222", "#8a8a8a"

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
}

# Okabe and Ito's, which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")

# Samples that were placed, and those drawn at random. The fit is of both.
PLACED: dict[str, Any] = {"marker": "o", "s": 34, "linewidths": 0.6, "edgecolors": "white"}
DRAWN: dict[str, Any] = {"marker": "D", "s": 34, "linewidths": 1.6, "facecolors": "white"}


def fit_colours(fits: Sequence[EngineFit]) -> dict[str, str]:
    """By what stays the same over roles, so that decode and prefill of a K/V type match."""
    names = dict.fromkeys(colour_key(fit) for fit in fits)
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}


def colour_key(fit: EngineFit) -> str:
    return f"{fit.engine} {fit.device} {fit.kv_k}/{fit.kv_v} {fit.unified}"


def say_instead(axes: "Axes", text: str) -> None:
    """Of a panel."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=FAINT)


def log_axes(axes: "Axes") -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(True, which="minor", color="#f3f3f3", linewidth=0.6)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")


def power_of_two_axis(axes: "Axes", low: float, high: float) -> None:
    """Along x, at most seven ticks; to the right room for the names of lines."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(low / 1.2, 1.2 * high * (high / low) ** 0.3)
    ticks = [float(2**power) for power in range(24) if low * 0.99 <= 2**power <= high * 1.01]
    step = max(1, -(-len(ticks) // 7))
    axes.xaxis.set_major_locator(FixedLocator(ticks[::-1][::step]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: count_text(value))


def log_time_axis(axes: "Axes") -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 3.0, 5.0), numticks=12))
    axes.yaxis.set_major_formatter(_seconds_label)
    axes.yaxis.set_minor_formatter(NullFormatter())


def _seconds_label(seconds: float, _: object) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} µs"
