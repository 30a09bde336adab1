"""`hetero results`: what experiments gave; one of them, also drawn anew; two side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hetero.cli.output import FAILED, AsJson, print_json, print_progress

if TYPE_CHECKING:
    from hetero.experiment.outcome.agreement import Compared
    from hetero.experiment.outcome.result import Result

app = typer.Typer(no_args_is_help=False)


@app.callback(invoke_without_command=True)
def results(
    context: typer.Context,
    results: Annotated[
        Path, typer.Option(metavar="DIR", help="Where they lie, as `hetero run` was told.")
    ] = Path("results"),
    as_json: AsJson = False,
) -> None:
    """List what recipes gave, below DIR."""
    if context.invoked_subcommand is not None:
        return
    found, problems = _found(results)
    if as_json:
        print_json({"results": [_summary(folder, result) for folder, result in found]})
    elif found:
        _print_list(found)
    else:
        print_progress(
            f"no result of a recipe below {results}: hetero run RECIPE makes one, and --results "
            "DIR lists another directory's"
        )
    for problem in problems:
        print_progress(f"hetero: skipped: {problem}")


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of one result.")],
    as_json: AsJson = False,
) -> None:
    """Print a result's answer."""
    import msgspec

    result = _read(folder)
    if as_json:
        print_json(
            _summary(folder, result)
            | {
                "figures": msgspec.to_builtins(result.figures),
                "checks": msgspec.to_builtins(result.checks),
            }
        )
        return
    print(result.recipe.question)
    if result.emulated:
        print(f"EMULATED: {', '.join(result.emulated)}")
    print()
    for figure in result.figures:
        print(f"{figure.name}: {figure.line}\n    {figure.says}")
    for check in result.checks:
        print(f"{check.verdict}: {check.says}: {check.text}")
    print(f"\n{result.machine}, {result.ended}, model {result.model.get('name')}")


@app.command()
def redraw(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of one result.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="Its recipe with other figures, checks or plots: a name, or a file."),
    ] = None,
) -> None:
    """Compute figures, plots and report anew from what was measured.

    With matplotlib, where a run had none; with a newer hetero; or with other questions.
    """
    from hetero.experiment.outcome.asked_anew import asked_anew
    from hetero.experiment.outcome.finish import finish
    from hetero.experiment.recipe.found import find_recipe
    from hetero.experiment.recipe.load import load_recipe

    result = _read(folder)
    folder = folder if folder.is_dir() else folder.parent
    if recipe is not None:
        result = asked_anew(folder, result, load_recipe(find_recipe(recipe, Path.cwd())))
    finish(folder, result, print_progress)
    print(folder / "report.md")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A")],
    second: Annotated[Path, typer.Argument(metavar="B")],
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if a figure disagrees.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Two results' figures side by side.

    Two numbers agree if the 95% interval of their difference contains 0 (of their ratio, by which
    numbers above 0 are compared: 1); that is stricter than overlapping intervals.
    """
    import msgspec

    from hetero.experiment.outcome import agreement

    a, b = _read(first), _read(second)
    rows = agreement.compare(a, b)
    warnings = agreement.differences(a, b)
    disagreeing = [row.name for row in rows if row.agree is False]
    if as_json:
        print_json(
            {
                "a": str(first),
                "b": str(second),
                "figures": msgspec.to_builtins(rows),
                "warnings": warnings,
                "agree": not disagreeing,
            }
        )
    else:
        print(f"A: {first}, {a.machine}, {a.ended}\nB: {second}, {b.machine}, {b.ended}\n")
        for row in rows:
            _print_compared(row)
        for warning in warnings:
            print(f"warning: {warning}")
        agreeing = [row for row in rows if row.agree]
        unsure = sum(row.inconclusive for row in agreeing)
        print(f"{len(agreeing)} of {len(rows)} figures agree, {unsure} of them inconclusive")
    if check and (disagreeing or not rows):
        raise typer.Exit(FAILED)


def _read(path: Path) -> "Result":
    """Raises: ConfigError, which knows the reports of `hetero bench`."""
    from hetero.errors import ConfigError
    from hetero.experiment.outcome.result import FILE_NAME, read_result

    try:
        return read_result(path)
    except ConfigError:
        if verb := _benchmark(path / FILE_NAME if path.is_dir() else path):
            raise ConfigError(
                f"{path}: need the result of a recipe, have a report of `hetero bench {verb}`; "
                "what is shown and compared is what `hetero run RECIPE` gives"
            ) from None
        raise


def _benchmark(path: Path) -> str | None:
    """Whose report it is."""
    import msgspec

    try:
        report = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return report.get("benchmark") if isinstance(report, dict) else None


def _print_compared(row: "Compared") -> None:
    verdict = {True: "agree", False: "DISAGREE", None: "can't be told"}[row.agree]
    note = f" ({row.note})" if row.note else ""
    print(f"{row.name}: {row.says}: {verdict}{note}\n    A: {row.a}\n    B: {row.b}")


def _found(below: Path) -> "tuple[list[tuple[Path, Result]], list[str]]":
    """In the order of their folders; and why others can't be read."""
    from hetero.errors import ConfigError
    from hetero.experiment.outcome.result import FILE_NAME, is_result, read_result

    found, problems = [], []
    for path in sorted(below.glob(f"**/{FILE_NAME}")):
        if not is_result(path):
            continue
        try:
            found.append((path.parent, read_result(path)))
        except ConfigError as error:
            problems.append(str(error))
    return found, problems


def _summary(folder: Path, result: "Result") -> dict[str, Any]:
    held = sum(check.held for check in result.checks)
    return {
        "folder": str(folder),
        "recipe": result.recipe.name,
        "question": result.recipe.question,
        "recipe_hash": result.recipe_hash,
        "date": result.ended,
        "machine": result.machine,
        "emulated": result.emulated,
        "checks_held": held,
        "checks": len(result.checks),
        "answer": result.figures[0].line if result.figures else None,
    }


def _print_list(found: "list[tuple[Path, Result]]") -> None:
    from hetero.cli.profile_tables import print_table
    from hetero.profile.node_report import Table

    rows = []
    for folder, result in found:
        said = _summary(folder, result)
        checks = f"{said['checks_held']} of {said['checks']}" if said["checks"] else "-"
        answer = said["answer"] or ""
        if result.emulated:
            answer = f"EMULATED; {answer}"
        day = str(said["date"])[:10]
        rows.append([said["recipe"], day, said["machine"], checks, answer, str(folder)])
    heads = ["recipe", "date", "machine", "checks held", "answer", "folder"]
    print_table(Table("", heads, rows))
