"""`hetero lab up | exec | link | status | down`: an emulated homelab on this box."""

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hetero.cli.output import AsJson, print_json, print_progress, size_text
from hetero.errors import ConfigError

if TYPE_CHECKING:
    from hetero.launch.lab.lab import Lab

app = typer.Typer(help="Emulate a homelab on this box. Needs root.", no_args_is_help=True)

LabName = Annotated[
    str | None, typer.Option("--lab", help="Which, if several are up.  [default: the only one]")
]


@app.command()
def up(
    file: Annotated[Path, typer.Argument(help="A YAML file: hosts, switches, links.")],
    as_json: AsJson = False,
) -> None:
    """Bring a lab up. One of the same name, or what is left of it, is removed first."""
    from hetero.launch.lab.lab import Lab

    lab = Lab(file)
    if lab.up():
        print_progress(f"lab {lab.name!r}: removed what was here of it")
    _print_status(lab, as_json)


# What follows HOST is the command's, dashes or not.
@app.command("exec", context_settings={"allow_interspersed_args": False})
def execute(
    host: Annotated[str, typer.Argument(help="Where.")],
    command: Annotated[list[str], typer.Argument(help="What to run, after `--`.")],
    name: LabName = None,
    as_json: AsJson = False,
) -> None:
    """Run a command on a host. Exit status, signals, input and output are the command's.

    With --json, {"host", "exit_status"} follows what it printed.
    """
    if command[0] == "--":  # kept by the parser, which has stopped at HOST
        command = command[1:]
    if not command:
        raise ConfigError("lab exec: need a command after `--`, have none")
    argv = _attach(name).command(host, command)
    if not as_json:
        # Python ignores these, and what is ignored stays so in the command.
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.execv(argv[0], argv)
    status = _run_and_wait(argv)
    print_json({"host": host, "exit_status": status})
    raise SystemExit(status)


@app.command()
def link(
    a: Annotated[str, typer.Argument(help="A host or a switch.")],
    b: Annotated[str, typer.Argument(help="The one at the link's other end.")],
    rate: Annotated[
        str,
        typer.Option(
            help="From 5mbit to 40gbit; `down`: as if unplugged; `up`: at its rate again."
        ),
    ],
    name: LabName = None,
    as_json: AsJson = False,
) -> None:
    """Change a link while it is in use. Connections over it live on."""
    lab = _attach(name)
    if rate == "down":
        lab.set_down(a, b)
    elif rate == "up":
        lab.set_up(a, b)
    else:
        lab.set_rate(a, b, rate)
    if as_json:
        (changed,) = (each for each in lab.status()["links"] if set(each["between"]) == {a, b})
        print_json(changed)


@app.command()
def status(name: LabName = None, as_json: AsJson = False) -> None:
    """What a lab consists of, and what runs in it."""
    _print_status(_attach(name), as_json)


@app.command()
def down(name: LabName = None, as_json: AsJson = False) -> None:
    """Remove a lab, or what a killed command left of it, with all that runs in it."""
    from hetero.launch.lab.commands import check_machine
    from hetero.launch.lab.limits import machine_controllers
    from hetero.launch.lab.removal import remove_lab
    from hetero.launch.lab.state import lab_names, locked

    check_machine()
    found = lab_names(machine_controllers())
    names = found if name is None else [name]
    if len(names) > 1:
        raise ConfigError(f"lab: need --lab, have several here: {', '.join(names)}")
    removed = []
    for each in names:
        with locked(each):
            if remove_lab(each):
                removed.append(each)
    if as_json:
        print_json({"removed": removed})
    else:
        print_progress(f"lab {removed[0]!r}: removed" if removed else "lab: none here")


def _attach(name: str | None) -> "Lab":
    from hetero.launch.lab.commands import check_machine
    from hetero.launch.lab.lab import Lab
    from hetero.launch.lab.state import choose_lab

    check_machine()
    return Lab.attach(choose_lab(name))


def _run_and_wait(argv: list[str]) -> int:
    """The command's exit status, as a shell counts it. Signals are handed on to it."""
    import subprocess

    with subprocess.Popen(argv) as process:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda sent, _: process.send_signal(sent))
        status = process.wait()
    return status if status >= 0 else 128 - status


def _print_status(lab: "Lab", as_json: bool) -> None:
    status = lab.status()
    if as_json:
        print_json(status)
        return
    from rich.console import Console
    from rich.table import Table

    hosts = Table("host", "address", "CPUs", "quota", "memory", "processes", box=None)
    for host in status["hosts"]:
        hosts.add_row(host["name"], host["address"], *_limit_cells(host), str(len(host["pids"])))
    links = Table("link", "rate", "MTU", "", box=None)
    for each in status["links"]:
        ends = " - ".join(each["between"])
        links.add_row(ends, each["rate"], str(each["mtu"]), "" if each["up"] else "down")
    console = Console()
    console.print(f"lab {status['name']}")
    console.print(hosts)
    console.print(links)


def _limit_cells(host: dict[str, Any]) -> tuple[str, str, str]:
    quota, memory_bytes = host["quota"], host["memory_bytes"]
    return (
        host["cpus"] or "all",
        "-" if quota is None else f"{quota:g}",
        "-" if memory_bytes is None else size_text(memory_bytes),
    )
