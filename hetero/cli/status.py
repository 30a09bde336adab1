"""`hetero status`: what a router knows of its nodes."""

from typing import Annotated, Any

import typer

from hetero.cli.output import AsJson, print_json, size_text
from hetero.errors import HeteroError

app = typer.Typer(add_completion=False)


@app.command()
def status(
    url: Annotated[
        str | None, typer.Option(help="The router's.  [default: the cluster that runs here]")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of a cluster that runs here, if there are several.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What a cluster's nodes are doing."""
    from hetero.launch.router_client import get_status

    answer = get_status((url or _local_url(name)).rstrip("/"))
    if as_json:
        print_json(answer)
    else:
        _print_table(answer)


def _local_url(name: str | None) -> str:
    from hetero.launch.run_directory import running_clusters

    urls = {
        state.name: state.url
        for state in running_clusters()
        if state.url is not None and name in (None, state.name)
    }
    if len(urls) == 1:
        return next(iter(urls.values()))
    if urls:
        raise HeteroError(f"status: need --name, have several here: {', '.join(urls)}")
    which = "no cluster" if name is None else f"no cluster named {name!r}"
    raise HeteroError(
        f"status: {which} is running here; start one with `hetero up --local`, or name its "
        "router with --url"
    )


def _print_table(answer: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # As Text: a node's words may hold what rich takes for markup.
    table = Table(title=Text(f"cluster {answer['cluster']}"), title_justify="left", box=None)
    for heading in ("node", "role", "host", "pid", "health", "KV held", "active", "queued"):
        table.add_column(
            heading,
            justify="right" if heading in ("pid", "KV held", "active", "queued") else "left",
        )
    for node in answer["nodes"]:
        cells = [str(node[key]) for key in ("name", "role", "host", "pid", "health")]
        cells += [size_text(node["kv_bytes_held"]), str(node["active"]), str(node["queued"])]
        table.add_row(*map(Text, cells))
    console = Console()
    console.print(table)
    for node in answer["nodes"]:
        if node.get("emulated"):
            console.print(Text(f"{node['name']}: {node['engine']}: what it reads is nonsense"))
        if node.get("error"):
            console.print(Text(f"{node['name']}: {node['error']}"))
