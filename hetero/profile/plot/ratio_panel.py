"""Each sample over what the fit gives for it, beside the interval that the profile states.

The fit has seen all of them; the error stated beside its name is of cross-validation.
"""

from typing import TYPE_CHECKING

from hetero.profile.node_profile import EngineFit
from hetero.profile.plot.style import DRAWN, FAINT, INK, PLACED, colour_key, say_instead

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_ratios(axes: "Axes", fits: list[EngineFit], colours: dict[str, str]) -> None:
    axes.set_title("measured over fitted; bars: where 9 of 10 are expected")
    if not fits:
        say_instead(axes, "no samples")
        return
    axes.axvline(1, color=INK, linewidth=1.2)
    axes.grid(False, axis="y")
    furthest = 0.05
    for row, fit in enumerate(fits):
        low, high = fit.interval
        colour = colours[colour_key(fit)]
        axes.barh(row, high - low, left=low, height=0.62, color=colour, alpha=0.16, linewidth=0)
        for drawn in (False, True):
            ratios, places = [], []
            for index, sample in enumerate(fit.samples):
                fitted = fit.cost.seconds(sample.work)
                if sample.drawn == drawn and fitted > 0:
                    ratios.append(sample.undisturbed_s / fitted)
                    # Spread over the bar, in the order they were measured.
                    places.append(row - 0.25 + 0.5 * (index + 0.5) / len(fit.samples))
            if drawn:
                axes.scatter(ratios, places, edgecolors=colour, zorder=4, **DRAWN)
            else:
                axes.scatter(ratios, places, color=colour, zorder=3, **PLACED)
            furthest = max([furthest, *(abs(ratio - 1) for ratio in ratios)])
        furthest = max(furthest, 1 - low, high - 1)
    axes.set_xlim(1 - 1.15 * min(furthest, 0.85), 1 + 1.15 * furthest)
    axes.set_ylim(len(fits) - 0.4, -0.9)
    axes.set_yticks(range(len(fits)), [_name(fit) for fit in fits])
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value - 1:+.0%}" if value != 1 else "0")
    axes.scatter([], [], color=FAINT, label="placed", **PLACED)
    axes.scatter([], [], edgecolors=FAINT, label="drawn at random", **DRAWN)
    axes.legend(loc="upper right", ncols=2, fontsize=9, borderaxespad=0)


def _name(fit: EngineFit) -> str:
    cache = "unified" if fit.unified else "streams"
    error = "" if fit.error is None else f"\ncross-validated {fit.error.median:.1%}"
    return f"{fit.role} {fit.kv_k}/{fit.kv_v}\n{fit.engine} {fit.device}, {cache}{error}"
