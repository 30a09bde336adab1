"""One report from the rates that were asked for."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from hetero.experiment.figures import Say
from hetero.experiment.measuring import chosen, measure_each
from hetero.experiment.wire_bench import goodput
from hetero.experiment.wire_bench.settings import Settings
from hetero.profile.provenance import provenance


def measure_wire(
    settings: Settings,
    rates: Sequence[str],
    say: Say,
    keep: Callable[[dict[str, Any]], None] = lambda report: None,
) -> dict[str, Any]:
    """Raises: ConfigError for a rate that is not among the settings'."""
    report: dict[str, Any] = {
        "benchmark": "wire",
        **provenance(),
        "parameters": asdict(settings),
    }
    measurements = (
        (f"goodput_{rate}", partial(goodput.measure, settings, rate, say))
        for rate in chosen(rates, settings.rates)
    )
    measure_each(measurements, report, say, keep=keep)
    return report
