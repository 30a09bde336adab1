"""`hetero profile`: what machines and wires can really do."""

import typer

from hetero.cli.profile_compare import compare
from hetero.cli.profile_estimate import estimate
from hetero.cli.profile_link import link
from hetero.cli.profile_node import node
from hetero.cli.profile_show import show

app = typer.Typer(help="Measure machines and wires.", no_args_is_help=True)


@app.callback()
def profile() -> None:
    """What machines and wires can really do."""


app.command()(node)
app.command()(link)
app.command()(show)
app.command()(compare)
app.command()(estimate)
