"""`hetero node router | prefill | decode`: one process of a cluster, until it is signalled.

Prints one line of JSON on stdout when it is ready; its log is stderr.
"""

import logging
from pathlib import Path
from typing import Annotated

import typer

from hetero.cli.output import print_json

app = typer.Typer(help="Run one process of a cluster.", no_args_is_help=True)

ConfigFile = Annotated[Path, typer.Option("--config", help="The node's YAML or JSON file.")]
# Ready is said in JSON either way; the option is there because every verb has it.
AsJson = Annotated[bool, typer.Option("--json", help="Errors also as JSON on stdout.")]


@app.callback()
def node() -> None:
    """Run one process of a cluster (what a service manager starts)."""
    logging.getLogger().setLevel(min(logging.getLogger().level, logging.INFO))
    # A line per request would fill the disk of a cluster that runs for months.
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)


@app.command()
def router(config: ConfigFile, as_json: AsJson = False) -> None:
    """Take requests, choose where they run, and answer."""
    from hetero.serve.config import RouterConfig, load_config
    from hetero.serve.start import run_router

    run_router(load_config(config, RouterConfig), print_json)


@app.command()
def prefill(config: ConfigFile, as_json: AsJson = False) -> None:
    """Read prompts, and send their KV cache to decode nodes."""
    from hetero.serve.config import PrefillConfig, load_config
    from hetero.serve.start import run_prefill

    run_prefill(load_config(config, PrefillConfig), print_json)


@app.command()
def decode(config: ConfigFile, as_json: AsJson = False) -> None:
    """Hold KV caches, and generate."""
    from hetero.serve.config import DecodeConfig, load_config
    from hetero.serve.start import run_decode

    run_decode(load_config(config, DecodeConfig), print_json)
