"""One report: for each model two profiles by the command itself, and what became of them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hetero.errors import EngineError
from hetero.experiment.child import result_from_child
from hetero.experiment.figures import Figure, Say, at_most
from hetero.experiment.measuring import chosen, measure_each
from hetero.experiment.models import model_file
from hetero.experiment.profile_bench import held_out
from hetero.experiment.profile_bench.serving_memory import serving_peak_bytes
from hetero.experiment.profile_bench.settings import Settings
from hetero.machine.interleaving import interleave
from hetero.profile.agreement import agreement
from hetero.profile.document import read_node_profile
from hetero.profile.node_profile import NodeProfile
from hetero.profile.provenance import provenance
from hetero.serve.pinning import run_on

_HELD_OUT_S = 3600.0


@dataclass(frozen=True)
class _Run:
    profile: NodeProfile
    seconds: float
    peak_bytes: int


def measure_profiles(
    settings: Settings,
    names: Sequence[str],
    say: Say,
    keep: Callable[[dict[str, Any]], None] = lambda report: None,
) -> dict[str, Any]:
    """Raises: ConfigError for a model that is not among the settings'."""
    parameters = asdict(settings) | {
        "folder": None,
        "models": {
            name: f"{model.shape.name}-{model.quant}" for name, model in settings.models.items()
        },
    }
    report: dict[str, Any] = {"benchmark": "profile", **provenance(), "parameters": parameters}
    measurements = (
        (name, partial(_measure, settings, name, say)) for name in chosen(names, settings.models)
    )
    measure_each(measurements, report, say, keep=keep)
    return report


def _measure(settings: Settings, name: str, say: Say) -> list[Figure]:
    model = settings.models[name]
    path = model_file(settings.folder, model.shape, model.quant, say)
    outputs = [settings.folder / f"{name}-{run}.profile.yaml" for run in ("first", "second")]
    runs = [_profile(settings, path, output, say) for output in outputs]
    first, second = (run.profile for run in runs)
    found = agreement(first, second)
    if found.unmatched:
        raise EngineError(f"repeatability: need all fits in both runs, have not {found.unmatched}")
    figures = [
        Figure(
            name=f"repeatability_{name}",
            says="largest difference of two runs' predictions, in units of their pilots",
            value=found.worst_deviation,
            unit="ratio",
            target=at_most(0.05),
            arms={
                f"{fit.role} {fit.name} deviation_ratio": [
                    max(point.ratio, 1 / point.ratio) - 1 for point in fit.points
                ]
                for fit in found.fits
            },
            parameters={
                "median": found.median_deviation,
                "noise": [list(run.profile.noise.reasons) for run in runs if run.profile.noise],
            },
        ),
        Figure(
            name=f"budget_{name}",
            says="seconds that a profile took, over its budget",
            value=max(run.seconds for run in runs) / settings.budget_s,
            unit="ratio",
            target=at_most(1.2),
            arms={"profile_s": [run.seconds for run in runs]},
        ),
        _memory_figure(settings, name, path, runs),
    ]
    # In a process of its own: what ours once took would count as its children's peak.
    return figures + result_from_child(
        _held_out, settings, name, path, first, longest_s=_HELD_OUT_S
    )


def _held_out(settings: Settings, name: str, path: Path, profile: NodeProfile) -> list[Figure]:
    """Where the profile was taken: on those processors, in that memory."""
    place = profile.settings["decode"]  # any role's: they are found together
    run_on(place.cpus)
    interleave(place.interleave)
    return held_out.measure(
        settings, name, path, profile, partial(print, file=sys.stderr, flush=True)
    )


def _profile(settings: Settings, path: Path, output: Path, say: Say) -> _Run:
    """By the command, in a process of its own."""
    command = [sys.executable, "-m", "hetero", "profile", "node", "--model", str(path)]
    command += ["--budget", f"{settings.budget_s:g}", "--slots", f"{settings.slots}"]
    command += ["--context", f"{settings.context_tokens}", "--chunk", f"{settings.chunk_tokens}"]
    command += ["--output", str(output)]
    say(" ".join(command[2:]))
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise EngineError(f"profile node: need it to end well, have exit {process.returncode}")
    return _Run(read_node_profile(output), seconds, 1024 * usage.ru_maxrss)


def _memory_figure(settings: Settings, name: str, path: Path, runs: Sequence[_Run]) -> Figure:
    serving_bytes = serving_peak_bytes(settings, path)
    peaks = [float(run.peak_bytes) for run in runs]
    return Figure(
        name=f"memory_{name}",
        says="peak memory of the profiler's process, over that of an engine with all slots full",
        value=max(peaks) / serving_bytes,
        unit="ratio",
        target=at_most(1.0),
        arms={"profile_bytes": peaks, "serving_bytes": [serving_bytes]},
    )
