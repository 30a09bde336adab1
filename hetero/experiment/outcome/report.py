"""report.md: the answer first, then what it rests on."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hetero.experiment.outcome.arms_table import arms_table
from hetero.experiment.outcome.figure_result import FigureResult
from hetero.experiment.outcome.measurements import Measurements
from hetero.experiment.outcome.method import method_lines
from hetero.experiment.outcome.result import FILE_NAME, Result
from hetero.experiment.recipe.recipe import Recipe, Serving, Wire

if TYPE_CHECKING:
    from hetero.experiment.outcome.plots import Drawn


def report_text(
    folder: Path,
    result: Result,
    measured: Measurements,
    drawn: "Sequence[Drawn]",
    why_no_plots: str,
) -> str:
    """why_no_plots: "" where there are all that were asked for."""
    parts = [
        f"# {result.recipe.question}",
        *warning_lines(result),
        "\n".join(answer_lines(result)),
        *_section("Checks", "\n".join(check_lines(result))),
        *_section("Plots", "\n\n".join(_plots(drawn, why_no_plots))),
        *_section("All arms", arms_table(measured)),
        *_section("Method", "\n".join(f"- {line}" for line in method_lines(result))),
        *_section("Caveats", "\n".join(f"- {line}" for line in result.recipe.caveats)),
        "## Again",
        f"```\n{_command(result.recipe)} run {folder / FILE_NAME}\n```",
        "`result.json` holds the recipe and all that was measured; `requests.jsonl`, where there "
        "is one, a line for each request.",
    ]
    return "\n\n".join(parts) + "\n"


def _command(recipe: Recipe) -> str:
    has_lab = isinstance(recipe, Wire) or (
        isinstance(recipe, Serving) and recipe.cluster.lab is not None
    )
    return "sudo $(which hetero)" if has_lab else "hetero"


def answer_lines(result: Result) -> Iterator[str]:
    """A bullet for each figure, in Markdown."""
    for figure in result.figures:
        yield f"- **{figure.name}**: {figure_text(figure)}  \n  {figure.says}"
    if not result.figures:
        yield "No figures were asked for."


def figure_text(figure: FigureResult) -> str:
    if figure.inconclusive:
        return f"{figure.text}; *inconclusive*: {figure.inconclusive}"
    return figure.text


def check_lines(result: Result) -> Iterator[str]:
    if result.checks:
        yield "| check | found | |"
        yield "|---|---|---|"
    for check in result.checks:
        verdict = check.verdict if check.held else f"**{check.verdict}**"
        yield f"| {_cell(check.says)} | {_cell(check.text)} | {verdict} |"


def warning_lines(result: Result) -> Iterator[str]:
    """What must be read before any number."""
    if result.emulated:
        names = ", ".join(result.emulated)
        yield (
            f"**EMULATED: {names}.** Such a device was replaced by a process that waits as long as "
            "the device would compute, and sends recorded rows. No number here was measured on one."
        )


def _plots(drawn: "Sequence[Drawn]", why_not: str) -> Iterator[str]:
    if why_not:
        yield f"None: {why_not}."
    for each in drawn:
        yield f"![{each.title}]({each.stem}.png)"


def _section(title: str, text: str) -> Iterator[str]:
    if text:
        yield f"## {title}"
        yield text


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
