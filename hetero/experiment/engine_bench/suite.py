"""The table of figures, and one report from those that were asked for."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from hetero.experiment.engine_bench import (
    churn,
    exposed,
    itl,
    memory,
    pack_rate,
    python_work,
    restore_rate,
    sampling_cost,
    step_rate,
)
from hetero.experiment.engine_bench.memory_ceilings import memory_ceilings
from hetero.experiment.engine_bench.settings import Settings
from hetero.experiment.figures import Figure, Say
from hetero.experiment.measuring import chosen, measure_each
from hetero.profile.provenance import provenance

# By the name --only takes, the short ones first.
FIGURES: dict[str, Callable[[Settings, Say], list[Figure]]] = {
    "pack": pack_rate.measure,
    "restore": restore_rate.measure,
    "python": python_work.measure,
    "sampling": sampling_cost.measure,
    "decode": step_rate.measure,
    "churn": churn.measure,
    "exposed": exposed.measure,
    "itl": itl.measure,
    "memory": memory.measure,
}


def measure_engines(settings: Settings, names: Sequence[str], say: Say) -> dict[str, Any]:
    """Measure the named figures (all, without names) and report. A figure that can't be measured
    is reported with its reason, and the others go on.

    Raises: ConfigError for a name that is no figure.
    """
    names = chosen(names, FIGURES)
    ceilings = memory_ceilings(quick=settings.quick)
    for name, value in ceilings.items():
        say(f"{name}: {value / 1e9:.1f}e9 on one core")
    report: dict[str, Any] = {
        "benchmark": "engine",
        **provenance(),
        "ceilings": ceilings,
        "parameters": _parameters(settings),
    }
    measure_each(((name, partial(FIGURES[name], settings, say)) for name in names), report, say)
    return report


def _parameters(settings: Settings) -> dict[str, Any]:
    parameters = asdict(settings)
    for name, value in parameters.items():
        if isinstance(value, dict):  # a shape
            parameters[name] = value["name"]
    parameters["large_shape"] = settings.large_shape(settings.large_all_layers).name
    del parameters["folder"]  # says nothing about the machine
    return parameters
