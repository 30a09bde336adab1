"""The table of figures, and one report from those that were asked for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch

from hetero.experiment.figures import Figure, Say
from hetero.experiment.kernel_bench import (
    attention_speed,
    dequantize_speed,
    elementwise_speed,
    pack_speed,
    prefill_speed,
)
from hetero.experiment.kernel_bench.ceilings import measure_ceilings
from hetero.experiment.kernel_bench.device import free_memory, gpu_facts
from hetero.experiment.kernel_bench.race import Bench
from hetero.experiment.kernel_bench.settings import Settings
from hetero.experiment.kernel_bench.stopwatch import GpuStopwatch, WallStopwatch
from hetero.experiment.measuring import Measurement, chosen, measure_each
from hetero.prefill.triton_support import capability
from hetero.profile.provenance import provenance

# By the name --only takes.
FIGURES: dict[str, Callable[[Bench], Iterator[tuple[str, Measurement]]]] = {
    "attention": attention_speed.measurements,
    "pack": pack_speed.measurements,
    "dequantize": dequantize_speed.measurements,
    "elementwise": elementwise_speed.measurements,
    "prefill": prefill_speed.measurements,
}


def measure_kernels(
    settings: Settings,
    device: torch.device,
    names: Sequence[str],
    say: Say,
    keep: Callable[[dict[str, Any]], None] = lambda report: None,
) -> dict[str, Any]:
    """Measure the named figures (all, without names) and report. A figure that can't be measured
    is reported with its reason, and the others go on: on a chip that nobody has tried, a kernel
    that fails is a result. `keep` gets the report after each figure.

    Raises: ConfigError for a name that is no figure.
    """
    names = chosen(names, FIGURES)
    stopwatch = (
        GpuStopwatch(device, settings.runway_bytes) if device.type == "cuda" else WallStopwatch()
    )
    bench = Bench(
        settings=settings,
        device=device,
        capability=capability(device),
        stopwatch=stopwatch,
        ceilings=measure_ceilings(settings, device, stopwatch, say),
        say=say,
    )
    report: dict[str, Any] = {
        "benchmark": "kernels",
        **provenance(),
        "gpu": gpu_facts(device),
        "ceilings": bench.ceilings.to_json(),
        "parameters": _parameters(settings),
    }
    measurements = (
        (name, _with_memory_freed(measure))
        for chosen_name in names
        for name, measure in FIGURES[chosen_name](bench)
    )
    measure_each(measurements, report, say, keep=keep, expected=Exception)
    return report


def _with_memory_freed(measure: Measurement) -> Measurement:
    def measured() -> list[Figure]:
        free_memory()  # also that of a failure before this one
        return measure()

    return measured


def _parameters(settings: Settings) -> dict[str, Any]:
    parameters = asdict(settings)
    parameters["shape"] = settings.shape.name
    del parameters["folder"]  # says nothing about the machine
    return parameters
