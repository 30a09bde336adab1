"""`hetero run RECIPE`: an experiment, from its file to a report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetero.cli.output import INTERRUPTED, AsJson, print_json, print_progress
from hetero.errors import ConfigError

if TYPE_CHECKING:
    from hetero.experiment.outcome.result import Result

app = typer.Typer(add_completion=False)


@app.command()
def run(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="A name as `hetero recipes` lists it, a file, or a result.json."
        ),
    ],
    results: Annotated[Path, typer.Option(help="Where RECIPE/DATE_MACHINE is made.")] = Path(
        "results"
    ),
    repetitions: Annotated[
        int | None, typer.Option(min=1, max=100, help="Instead of the recipe's.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="A GGUF file instead of the recipe's.")
    ] = None,
    texts: Annotated[
        list[Path] | None,
        typer.Option(help="Of kv-quality with --model: UTF-8 files to read; may be repeated."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if one of the recipe's checks failed.")
    ] = False,
    busy: Annotated[
        bool, typer.Option("--busy", help="Also while other programs compute here.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew where an interrupted run could go on.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run an experiment: its arms in turns, then figures, plots and a report.

    Interrupted, it goes on at the next arm when it is run again.
    """
    import os

    # Before numpy is imported: what measures must not take the cores that are measured.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    from hetero.experiment.recipe.found import find_recipe
    from hetero.experiment.recipe.load import load_recipe
    from hetero.experiment.recipe.replace import with_model, with_repetitions
    from hetero.experiment.recipe_run.run import run_recipe

    chosen = load_recipe(find_recipe(recipe, Path.cwd()))
    if repetitions is not None:
        chosen = with_repetitions(chosen, repetitions)
    if model is not None:
        chosen = with_model(chosen, model, texts or [])
    elif texts:
        raise ConfigError("--texts: need --model, whose answers they are to show, have none")
    try:
        folder, result = run_recipe(chosen, results, print_progress, busy=busy, fresh=fresh)
    except KeyboardInterrupt:
        print_progress("stopped; what was measured is kept, and the same command goes on from it")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        import msgspec

        told = {"results": str(folder), "checks": msgspec.to_builtins(result.checks)}
        print_json(told | {"emulated": result.emulated})
    else:
        _print_answer(folder, result)
    if check and not result.checks_held:
        raise typer.Exit(1)


def _print_answer(folder: Path, result: "Result") -> None:
    from hetero.experiment.outcome.report import answer_lines, warning_lines

    for line in (*warning_lines(result), *answer_lines(result)):
        typer.echo(line)
    typer.echo(f"\n{folder / 'report.md'}")
