"""The `hetero` command: finds the verb, and turns whatever it raises into words and an exit status.

A verb's module is imported when the verb is called, so that `hetero --help` answers at once.
"""

import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from hetero import __version__
from hetero.cli.output import BAD_USAGE, FAILED, INTERRUPTED, OK, print_json
from hetero.errors import ConfigError, HeteroError, ModelError

# The base of all that Typer says of wrong arguments; its own name has moved between releases.
_UsageError: type[Any] = typer.BadParameter.__mro__[1]

_VERBS = {
    "demo": "Send one long prompt through two processes, and check what comes out.",
    "generate": "One prompt through local processes.",
    "model": "Look at, make and fetch model files.",
    "up": "Bring a cluster up.",
    "status": "What a cluster's nodes are doing.",
    "keys": "The keys of a cluster's machines, and which of them may talk.",
    "node": "Run one process of a cluster (what a service manager starts).",
    "profile": "What machines and wires can really do, measured.",
    "bench": "Measure.",
    "run": "Run an experiment: a recipe, to results.",
    "recipes": "Experiments anyone can rerun: list them, check them.",
    "results": "What experiments gave: list, show, compare.",
    "lab": "Emulate a homelab on this box.",
    "doctor": "What is missing on this machine, and the command that fixes it.",
}
# Verbs with verbs of their own.
_GROUPS = frozenset({"model", "keys", "node", "profile", "bench", "lab", "results"})


class _Verbs(TyperGroup):
    """Knows the verbs by name and one line of help; the rest is imported when one is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, line in _VERBS.items():
            if find_spec(f"hetero.cli.{name}") is not None:
                self.add_command(TyperCommand(name, help=line))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name is None or command is None:
            return name, command, rest
        app = importlib.import_module(f"hetero.cli.{name}").app
        # As markup, what stands in brackets would be lost.
        app.rich_markup_mode = None
        load = typer.main.get_group if name in _GROUPS else typer.main.get_command
        return name, load(app), rest


app = typer.Typer(
    cls=_Verbs,
    add_completion=False,
    # Plain text: the boxes cost a third of the time that `--help` takes.
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def hetero(
    context: typer.Context,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log to stderr what is going on.")
    ] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Serve one model from unequal machines.

    Every verb takes --json: one JSON object, last on stdout. Exit status: 0 done, 1 failed,
    2 wrong arguments or configuration.
    """
    if version:
        typer.echo(f"hetero {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(BAD_USAGE)
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command's exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        status = typer.main.get_command(app).main(
            args=arguments, prog_name="hetero", standalone_mode=False
        )
        sys.stdout.flush()
        return status if isinstance(status, int) else OK
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return FAILED
    except Exception as error:
        return _report(error, as_json="--json" in arguments)


def _end(number: int, _frame: object) -> NoReturn:
    """A signal to end: unwinds, so that what was started here is ended too."""
    raise SystemExit(128 + number)


def _report(error: Exception, *, as_json: bool) -> int:
    status = BAD_USAGE if isinstance(error, ConfigError | ModelError | _UsageError) else FAILED
    message = str(error)
    if isinstance(error, _UsageError):
        message = error.format_message()
        if message and error.ctx is not None:
            message += f" Try `{error.ctx.command_path} --help`."
    elif not isinstance(error, HeteroError):
        if os.environ.get("HETERO_DEBUG") == "1":
            raise error
        message = (
            f"{type(error).__name__}: {message}. This is a bug: please report it, with what "
            "HETERO_DEBUG=1 prints"
        )
    if message:  # a group without a verb has printed its help
        with suppress(BrokenPipeError):
            print(f"hetero: error: {message}", file=sys.stderr, flush=True)
    if as_json:
        try:
            print_json({"error": {"kind": type(error).__name__, "message": message}})
        except BrokenPipeError:
            _forget_stdout()
    return status


def _forget_stdout() -> None:
    """Nobody reads it any more: what is left in its buffer must not fail when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
