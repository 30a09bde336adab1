"""Figures measured one after the other, whatever becomes of each."""

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hetero.errors import ConfigError, HeteroError
from hetero.experiment.figures import Figure, Say

Measurement = Callable[[], list[Figure]]


def chosen(names: Sequence[str], known: Iterable[str]) -> Sequence[str]:
    """The names asked for, or all that are known.

    Raises: ConfigError for a name that is not known.
    """
    known = list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"--only: need some of {', '.join(known)}, have {', '.join(unknown)}")
    return names or known


def measure_each(
    measurements: Iterable[tuple[str, Measurement]],
    report: dict[str, Any],
    say: Say,
    *,
    keep: Callable[[dict[str, Any]], None] = lambda report: None,
    expected: type[Exception] = HeteroError,
) -> None:
    """Add `figures`, `failures` and `seconds` to a report; `keep` gets it after each measurement.

    What fails in an expected way is reported with its reason, and the others go on.
    """
    report |= {"figures": [], "failures": [], "seconds": {}}
    for name, measure in measurements:
        started = time.perf_counter()
        try:
            figures = measure()
        except expected as error:
            if isinstance(error, HeteroError):
                reason = str(error)
            else:
                say(traceback.format_exc())
                reason = f"{type(error).__name__}: {error}"
            say(f"{name}: not measured: {reason}")
            report["failures"].append({"name": name, "error": reason})
        else:
            for figure in figures:
                say(figure.line())
            report["figures"] += [figure.to_json() for figure in figures]
            report["seconds"][name] = round(time.perf_counter() - started, 1)
        keep(report)
