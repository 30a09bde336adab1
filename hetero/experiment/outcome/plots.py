"""A recipe's plots as PNG and SVG. They need matplotlib, which a run does without."""

import io
import re
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hetero.experiment.outcome.arm_run import emulated
from hetero.experiment.outcome.measurements import Measurements
from hetero.experiment.outcome.settings_axis import axis_label
from hetero.experiment.outcome.whole_file import write_whole
from hetero.experiment.recipe.figures import BarPlot, GridPlot, LinePlot, Plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hetero.experiment.outcome.plot_panel import Series

_PANEL = (5.6, 3.9)  # inches
_DPI = 130


class Drawn(NamedTuple):
    title: str
    stem: str  # of its .png and .svg


def draw_plots(folder: Path, measured: Measurements) -> tuple[list[Drawn], str]:
    """Into a folder; and why there are none.

    Raises: HeteroError if a file can't be written.
    """
    if not measured.recipe.plots:
        return [], ""
    if find_spec("matplotlib") is None:
        return [], (
            "need the matplotlib package, have none: pip install 'hetero[plot]', then "
            f"hetero results redraw {folder}"
        )
    from matplotlib import rc_context

    from hetero.profile.plot.style import STYLE

    drawn = []
    for number, plot in enumerate(measured.recipe.plots, 1):
        stem = f"plot_{number}_{_slug(plot.title)}"
        # A salt, and no date: equal plots are equal files.
        with rc_context(STYLE | {"svg.hashsalt": stem}):
            figure = draw_plot(measured, plot)
            for suffix, facts in (("png", {"Software": None}), ("svg", {"Date": None})):
                content = io.BytesIO()
                figure.savefig(content, format=suffix, dpi=_DPI, metadata=facts)
                write_whole(folder / f"{stem}.{suffix}", content.getvalue())
        drawn.append(Drawn(plot.title, stem))
    return drawn, ""


def draw_plot(measured: Measurements, plot: Plot) -> "Figure":
    # No pyplot: it keeps figures, and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from hetero.experiment.outcome.plot_grid import draw_grid
    from hetero.experiment.outcome.plot_panel import part_tick_names

    metrics = [plot.value] if isinstance(plot, GridPlot) else plot.y
    columns = min(len(metrics), 3 if len(metrics) in (3, 5, 6) else 2)
    rows = -(-len(metrics) // columns)
    width, height = _size(measured, plot)
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(columns * width, rows * height + 1.0), layout=layout)
    FigureCanvasAgg(figure)
    title = textwrap.fill(_title(measured, plot), round(columns * width * 9.5))
    figure.suptitle(title, fontsize=13, fontweight="bold", x=0.02, ha="left")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in panels[len(metrics) :]:
        unused.set_visible(False)
    if isinstance(plot, GridPlot):
        draw_grid(panels[0], measured, plot)
    else:
        _draw_panels(figure, panels, measured, plot)
    part_tick_names(figure, may_drop=isinstance(plot, LinePlot))
    return figure


def _draw_panels(
    figure: "Figure", panels: list[Any], measured: Measurements, plot: LinePlot | BarPlot
) -> None:
    from hetero.experiment.outcome.plot_bars import draw_bars
    from hetero.experiment.outcome.plot_lines import draw_lines

    shown: dict[int, Series] = {}
    for axes, metric in zip(panels, plot.y, strict=False):
        if isinstance(plot, LinePlot):
            series = draw_lines(axes, measured, plot, metric)
        else:
            series = draw_bars(axes, measured, plot, metric)
        shown |= {each.number: each for each in series}
    _draw_legend(figure, [shown[number] for number in sorted(shown)], plot)


def _draw_legend(figure: "Figure", series: "list[Series]", plot: LinePlot | BarPlot) -> None:
    """Below all panels, where it covers nothing; with what bands and bars mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    from hetero.profile.plot.style import FAINT, INK

    is_lines = isinstance(plot, LinePlot)
    handles: list[Line2D | Patch] = []
    if len(series) > 1 or (series and series[0].name):
        for each in series:
            if isinstance(plot, LinePlot):
                handles.append(Line2D([], [], label=each.name, **each.line(plot.x)))
            else:
                look: dict[str, Any] = {
                    "facecolor": each.colour,
                    "hatch": each.hatch,
                    "edgecolor": "white",
                }
                handles.append(Patch(label=each.name, linewidth=0, **look))
    if any(cell.spread.low is not None for each in series for cell in each.cells):
        note = "95% interval"
        if is_lines:
            handles.append(Patch(facecolor=FAINT, alpha=0.3, linewidth=0, label=note))
        else:
            handles.append(Line2D([], [], color=INK, linewidth=1.4, label=note))
    if handles:
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=_legend_columns(figure, [str(handle.get_label()) for handle in handles]),
            title=(plot.lines and axis_label(plot.lines)) or None,
            handlelength=3,
        )


def _legend_columns(figure: "Figure", names: list[str]) -> int:
    """As many as fit; in inches, at the size of the style."""
    entry = 0.9 + 0.09 * max(map(len, names))
    return max(1, min(len(names), int(figure.get_figwidth() / entry)))


def _size(measured: Measurements, plot: Plot) -> tuple[float, float]:
    """Inches of a panel."""
    if not isinstance(plot, GridPlot):
        return _PANEL
    columns, rows = len(measured.values(plot.x)), len(measured.values(plot.y))
    return max(5.6, 2.6 + 0.85 * columns), max(3.6, 1.4 + 0.55 * rows)


def _title(measured: Measurements, plot: Plot) -> str:
    """What was emulated says so in every picture it is in."""
    devices = emulated(run for arm in measured.selected(plot.at) for run in measured.runs(arm))
    return f"{plot.title} (emulated: {', '.join(devices)})" if devices else plot.title


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40].strip("-") or "plot"
