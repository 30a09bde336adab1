"""`hetero keys make | allow | revoke | list`: who may talk to a cluster's router.

A machine makes its key where it will be used; the router's machine allows the public half of it.
"""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from hetero.cli.output import AsJson, print_json

app = typer.Typer(help="The keys of a cluster's machines.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The `name:` in the node's file.", show_default=False)]
Directory = Annotated[
    Path | None,
    typer.Option("--dir", help="Where keys are.  [default: hetero/keys in XDG_CONFIG_HOME]"),
]


@app.command()
def make(name: Name, directory: Directory = None, as_json: AsJson = False) -> None:
    """Make a key pair for a router or node on this machine, and print its public half."""
    from hetero.transport.keys import make_key, public_file_of, secret_file_of

    folder = _directory(directory)
    public_key = make_key(folder, name).public
    secret_file = secret_file_of(folder, name)
    if as_json:
        print_json(
            {
                "name": name,
                "public_key": public_key,
                "secret_file": str(secret_file),
                "public_file": str(public_file_of(folder, name)),
            }
        )
        return
    typer.echo(f"""
name        {name}
public key  {public_key}
secret      {secret_file}: stays here, readable by you alone

Of a node: on the router's machine  hetero keys allow {quote(name)} {quote(public_key)}
           in the node's file       key: {secret_file}
Of a router: in its file            keys: {folder}
             in every node's file   router_key: '{public_key}'""")


@app.command()
def allow(
    name: Name,
    key: Annotated[str, typer.Argument(metavar="PUBLIC|FILE.key", show_default=False)],
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Let the holder of a key talk to the router here, under this name. No restart is needed."""
    from hetero.transport.allow_list import AllowList
    from hetero.transport.keys import check_public_key, load_public_key

    is_file = key.endswith((".key", ".key_secret"))
    which = f"key of {name}"
    public_key = load_public_key(Path(key)) if is_file else check_public_key(key, which)
    file = AllowList(_directory(directory)).allow(name, public_key)
    if as_json:
        print_json({"name": name, "public_key": public_key, "file": str(file)})
    else:
        typer.echo(f"{name} may talk to the routers that use {file.parent.parent}")


@app.command()
def revoke(name: Name, directory: Directory = None, as_json: AsJson = False) -> None:
    """Take a node off the list: a running router stops hearing it at once."""
    from hetero.transport.allow_list import AllowList

    public_key = AllowList(_directory(directory)).revoke(name)
    if as_json:
        print_json({"name": name, "public_key": public_key})
    else:
        typer.echo(f"{name} may not talk any more")


@app.command("list")
def list_keys(directory: Directory = None, as_json: AsJson = False) -> None:
    """The keys made here, and those that may talk to a router here. Public halves only."""
    from hetero.transport.allow_list import AllowList
    from hetero.transport.keys import own_public_keys

    folder = _directory(directory)
    own, allowed = own_public_keys(folder), AllowList(folder).keys()
    if as_json:
        print_json({"directory": str(folder), "keys": _rows(own), "allowed": _rows(allowed)})
        return
    for title, keys in ((f"made here, in {folder}", own), ("may talk to a router here", allowed)):
        typer.echo(f"{title}:")
        width = max(map(len, keys), default=0)
        for name, public_key in sorted(keys.items()):
            typer.echo(f"  {name:{width}}  {public_key}")
        if not keys:
            typer.echo("  none")


def _directory(given: Path | None) -> Path:
    from hetero.transport.keys import default_keys_directory

    return default_keys_directory() if given is None else given


def _rows(keys: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "public_key": key} for name, key in sorted(keys.items())]
