"""`hetero bench engine`: this machine's engines against ceilings measured in the same run."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Measure this machine's engines.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure this machine's engines."""


@app.command()
def engine(
    as_json: Annotated[bool, typer.Option("--json", help="The report on stdout.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the report here.")
    ] = None,
    only: Annotated[
        str, typer.Option(help="Some figures: pack,restore,python,sampling,decode,churn,...")
    ] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny models: whether it runs, not how fast.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Of each engine.")] = 1,
) -> None:
    """Decode, hand-over, packing, latency and memory as shares of what this machine could do."""
    # Read when numpy and llama.cpp load, which is below: packing is measured on one core, and the
    # processes that are measured share cores with each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    from hetero.errors import ConfigError, EngineError
    from hetero.experiment.engine_bench.settings import full_settings, quick_settings
    from hetero.experiment.engine_bench.suite import measure_engines

    if output is not None and not output.parent.is_dir():
        raise ConfigError(f"{output}: no directory {output.parent}; make it first")
    settings = (quick_settings if quick else full_settings)(_model_folder(), threads)
    names = [name.strip() for name in only.split(",") if name.strip()]
    report = measure_engines(settings, names, lambda line: typer.echo(line, err=True))
    text = json.dumps(report)
    if output is not None:
        output.write_text(json.dumps(report, indent=1) + "\n")
    if as_json:
        typer.echo(text)
    if report["failures"]:
        failed = ", ".join(failure["name"] for failure in report["failures"])
        raise EngineError(f"bench engine: need every figure measured, have none for {failed}")


def _model_folder() -> Path:
    """Where synthetic models are kept: some gigabytes that any cache cleaner may take."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "hetero" / "bench"
