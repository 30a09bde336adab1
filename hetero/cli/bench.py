"""`hetero bench engine`: this machine's engines against ceilings measured in the same run."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from hetero.cli.output import AsJson, print_json, print_progress

app = typer.Typer(help="Measure.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure."""


@app.command()
def engine(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the report to this file.")
    ] = None,
    only: Annotated[
        str, typer.Option(metavar="NAME,...", help="Some figures: pack, decode, itl ...")
    ] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny models: whether it runs, not how fast.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Of each engine.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Decode, hand-over, packing, latency and memory as shares of what this machine could do."""
    # Read when numpy and llama.cpp load, which is below: packing is measured on one core, and the
    # processes that are measured share cores with each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    from hetero.errors import ConfigError
    from hetero.experiment.engine_bench.settings import full_settings, quick_settings
    from hetero.experiment.engine_bench.suite import measure_engines

    if output is not None and not output.parent.is_dir():
        raise ConfigError(f"{output}: no directory {output.parent}; make it first")
    settings = (quick_settings if quick else full_settings)(_model_folder(), threads)
    names = [name.strip() for name in only.split(",") if name.strip()]
    report = measure_engines(settings, names, print_progress)
    if output is not None:
        output.write_text(json.dumps(report, indent=1) + "\n")
    if as_json:
        print_json(report)
    else:
        _print_table(report)
    if report["failures"]:
        raise typer.Exit(1)


def _print_table(report: dict[str, Any]) -> None:
    for figure in report["figures"]:
        target = f"{figure['target']['relation']} {figure['target']['bound']:g}"
        verdict = "met" if figure["met"] else "missed"
        typer.echo(
            f"{figure['name']:28} {figure['value']:10.4g} {figure['unit']:6} {target:8} {verdict}"
        )
    for failure in report["failures"]:
        typer.echo(f"{failure['name']:28} not measured: {failure['error']}")


def _model_folder() -> Path:
    """Where synthetic models are kept: some gigabytes that any cache cleaner may take."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "hetero" / "bench"
