"""What verbs leave behind: JSON on stdout; progress, which is for people, on stderr; files; and
an exit status."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from hetero.errors import ConfigError

OK, FAILED, BAD_USAGE = 0, 1, 2
INTERRUPTED = 130  # as a shell counts Ctrl-C

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, last on stdout.")]


def print_json(fields: dict[str, Any]) -> None:
    print(json.dumps(fields), flush=True)


def print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def check_writable(path: Path | None) -> None:
    """Before an hour of measuring, not after. What the file holds stays.

    Raises: ConfigError
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise ConfigError(
            f"{path}: need a file to write to, have no directory {path.parent}; make it first"
        )
    is_new = not path.exists()
    try:
        path.open("a").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise ConfigError(f"{path}: need a file to write to, have: {error.strerror}") from None


def size_text(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.3g} GiB"


def seconds_text(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


@contextmanager
def byte_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes on stderr, gone when the work is done."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
