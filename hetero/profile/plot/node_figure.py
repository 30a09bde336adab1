"""A node's profile as a picture: how near to the hardware it runs, and how well its fits hold."""

from importlib.util import find_spec
from pathlib import Path

import msgspec

from hetero.errors import ConfigError
from hetero.profile.node_profile import NodeProfile

# Beyond that panels are too small to read.
_MAX_PANELS = 8


def plot_node(profile: NodeProfile, path: Path) -> None:
    """Above a roofline, and each fit's samples over its predictions; below each fit as lines.

    Raises: ConfigError without matplotlib, or if the file can't be written.
    """
    if path.suffix.lower() != ".png":
        raise ConfigError(f"plot: need a name that ends in .png, have {path.name!r}")
    if find_spec("matplotlib") is None:
        raise ConfigError(
            "plot: need the matplotlib package, have none: pip install 'hetero[plot]'"
        )
    # No pyplot: it keeps figures, and looks for a display.
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from hetero.profile.plot.fit_panel import draw_fit
    from hetero.profile.plot.ratio_panel import draw_ratios
    from hetero.profile.plot.roofline import draw_roofline
    from hetero.profile.plot.style import STYLE, fit_colours

    sampled = [fit for fit in profile.fits if fit.samples]
    # Estimates beside what was measured would only hide it.
    profile = msgspec.structs.replace(profile, fits=sampled or profile.fits)
    panels = sorted(sampled, key=lambda fit: fit.role)[:_MAX_PANELS]
    colours = fit_colours(profile.fits)
    columns = max(2, min(4, len(panels)))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
        figure = Figure(figsize=(15, 6.4 + 4.6 * rows), layout=layout)
        figure.suptitle(_title(profile), fontsize=15, fontweight="bold")
        parts = figure.subfigures(
            1 + rows, 1, squeeze=False, height_ratios=[5.8] + [4.6] * rows, hspace=0.04
        )
        above, *below = parts.flat
        left, right = above.subplots(1, 2, width_ratios=[1.35, 1])
        draw_roofline(left, profile, colours)
        draw_ratios(right, panels, colours)
        axes = [panel for row in below for panel in row.subplots(1, columns, squeeze=False).flat]
        for panel, fit in zip(axes, panels, strict=False):
            draw_fit(panel, fit)
        for unused in axes[len(panels) :]:
            unused.set_visible(False)
        try:
            figure.savefig(path, format="png", dpi=130)
        except OSError as error:
            raise ConfigError(
                f"{path}: can't write it: {(error.strerror or str(error)).lower()}"
            ) from None


def _title(profile: NodeProfile) -> str:
    types = dict.fromkeys(f"{fit.kv_k}/{fit.kv_v}" for fit in profile.fits)
    kv = f", K/V {' and '.join(types)}" if types else ""
    return f"{profile.host}: {profile.model.name}{kv}"
