"""All arms in one table: the metrics that the recipe asks for, each with its interval."""

from collections.abc import Iterator

from hetero.experiment.outcome.measurements import Measurements
from hetero.experiment.outcome.settings_axis import value_text
from hetero.experiment.outcome.units import number_text, scale_of
from hetero.experiment.recipe.figures import GridPlot, Value
from hetero.experiment.recipe.metrics import NamedMetric

# More columns than that are no table to read.
_MAX_METRICS = 12

# Where a recipe asks for less.
_ALWAYS = {
    "serving": (
        "ttft_p50",
        "ttft_p95",
        "tpot_p50",
        "throughput",
        "error_share",
        "late_p95",
        "load_cores",
        "router_cores",
    ),
    "kv-quality": ("kld_mean", "recall_share", "same_top"),
    "kv-wire": ("kv_bytes_per_s", "source_cores", "sink_cores"),
}


def arms_table(measured: Measurements) -> str:
    """In Markdown."""
    return "\n".join(_lines(measured))


def _lines(measured: Measurements) -> Iterator[str]:
    axes = list(dict.fromkeys(key for arm in measured.arms for key in arm))
    shown = [(name, *_unit(measured, name)) for name in _metrics(measured)]
    heads = [*axes, *(_head(measured.metric(name), unit) for name, _, unit in shown), "repetitions"]
    yield _row(heads)
    yield "|" + "---|" * len(heads)
    for arm in measured.arms:
        cells = [_place(axis, arm.get(axis)) for axis in axes]
        for name, factor, _ in shown:
            spread = measured.spread(arm, name)
            if spread is None:
                cells.append("")
                continue
            text = number_text(spread.value / factor)
            if spread.low is not None and spread.high is not None and spread.low < spread.high:
                ends = (number_text(spread.low / factor), number_text(spread.high / factor))
                text += f" ({ends[0]} to {ends[1]})"
            cells.append(text)
        count = len(measured.runs(arm))
        yield _row([*cells, str(count) if count else "not measured"])


def _metrics(measured: Measurements) -> list[str]:
    """Those asked for, and a few of any kind; not those that no arm has."""
    recipe = measured.recipe
    asked = [figure.metric for figure in recipe.figures.values()]
    asked += [check.metric for check in recipe.checks if check.metric is not None]
    for plot in recipe.plots:
        asked += [plot.value] if isinstance(plot, GridPlot) else plot.y
    asked += _ALWAYS[measured.kind]
    known = [
        name
        for name in dict.fromkeys(asked)
        if any(measured.draws(arm, name) is not None for arm in measured.arms)
    ]
    return known[:_MAX_METRICS]


def _unit(measured: Measurements, name: str) -> tuple[float, str]:
    """One for a whole column: of its median."""
    spreads = [measured.spread(arm, name) for arm in measured.arms]
    values = sorted(abs(spread.value) for spread in spreads if spread is not None)
    return scale_of(values[len(values) // 2], measured.metric(name).metric.unit)


def _head(named: NamedMetric, unit: str) -> str:
    words = [named.key, *([named.statistic] if named.statistic else [])]
    return " ".join(words) + (f", {unit}" if unit else "")


def _place(axis: str, value: Value | None) -> str:
    return "any" if value is None else value_text(axis, value)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
