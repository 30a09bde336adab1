"""From a run's arms to its answer: figures, checks, plots, report."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from hetero.experiment.outcome.checks import check_all
from hetero.experiment.outcome.figures import evaluate
from hetero.experiment.outcome.measurements import Measurements
from hetero.experiment.outcome.plots import draw_plots
from hetero.experiment.outcome.report import report_text
from hetero.experiment.outcome.result import Result, write_result
from hetero.experiment.outcome.values import counted
from hetero.experiment.outcome.whole_file import write_whole


def finish(folder: Path, result: Result, say: Callable[[str], None]) -> Result:
    """Writes result.json, plots and report.md into a folder that is there. The result may hold all
    attempts of its arms: of each repetition the steadiest counts.

    Raises: HeteroError if a file can't be written; those before it stand.
    """
    result = evaluated(result)
    # First: it is what can't be made again from the others.
    write_result(folder, result)
    measured = Measurements(result.recipe, result.arms)
    drawn, why_not = draw_plots(folder, measured)
    if why_not:
        say(f"no plots: {why_not}")
    write_whole(
        folder / "report.md", report_text(folder, result, measured, drawn, why_not).encode()
    )
    return result


def evaluated(result: Result) -> Result:
    """With figures and checks, from its arms."""
    kept = counted(result.arms)
    ids = {id(run) for run in kept}
    measured = Measurements(result.recipe, kept)
    figures = evaluate(measured)
    return msgspec.structs.replace(
        result,
        arms=kept,
        dropped=[*result.dropped, *(run for run in result.arms if id(run) not in ids)],
        figures=figures,
        checks=check_all(measured, figures),
    )
