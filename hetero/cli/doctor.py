"""`hetero doctor`: what is missing on this machine, and the command that fixes it."""

from typing import TYPE_CHECKING

import typer

from hetero.cli.output import AsJson, print_json

if TYPE_CHECKING:
    from hetero.cli.checks import Check

app = typer.Typer(add_completion=False)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What is missing on this machine, and the command that fixes it.

    Fails if something is missing that hetero can't do without; the rest only costs speed.
    """
    from dataclasses import asdict

    from hetero.cli.checks import all_checks

    checks = all_checks()
    if as_json:
        print_json({"checks": [asdict(check) for check in checks]})
    else:
        _print_checks(checks)
    if any(check.required and not check.ok for check in checks):
        raise typer.Exit(1)


def _print_checks(checks: "list[Check]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "check", "have", "need", box=None)
    for check in checks:
        mark = (
            Text("ok", "green")
            if check.ok
            else Text("missing", "red")
            if check.required
            else Text("could be better", "yellow")
        )
        table.add_row(mark, check.name, Text(check.have), Text(check.need))
    console = Console(soft_wrap=True)
    console.print(table)
    for check in checks:
        if not check.ok and check.fix:
            console.print(Text(f"\n{check.name}:\n  {check.fix}"))
