"""`hetero profile link`: what a wire can really do with KV."""

import os
import sys
import threading
from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetero.cli.options import KType, VType
from hetero.cli.output import AsJson, print_json, print_progress
from hetero.cli.profile_file import save_profile
from hetero.errors import ConfigError

if TYPE_CHECKING:
    from hetero.kv.layout import KVLayout
    from hetero.messages import TransportName
    from hetero.profile.link.dialer import Mode
    from hetero.profile.link.report import LinkProfile

# Not on the command line, where every user of the machine could read it.
_KEY_VARIABLE = "HETERO_LINK_KEY"

# As many as a decode node has.
_NIXL_SLOTS = 16


def link(
    address: Annotated[
        str | None, typer.Argument(metavar="HOST:PORT", help="Of a listening end.")
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="[HOST:]PORT", help="Be the listening end: where decoding would be."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", "-M", help="Whose KV: a GGUF file, or `demo`.")
    ] = None,
    shape: Annotated[str | None, typer.Option(help="Whose KV, by name: llama-3.1-8b ...")] = None,
    kv_k: KType = "q8_0",
    kv_v: VType = "q8_0",
    transport: Annotated[
        str,
        typer.Option(help="What carries rows, for --listen: tcp, nixl-rdma, nixl-shm, nixl-tcp."),
    ] = "tcp",
    tokens: Annotated[int, typer.Option(min=1, max=2**20, help="Of a transfer.")] = 2048,
    seals: Annotated[str, typer.Option(help="Protections to measure.")] = "aead,mac,none",
    connections: Annotated[
        str, typer.Option(help="Numbers of them to measure; auto: as many as needed.")
    ] = "auto",
    frame_bytes: Annotated[
        int | None, typer.Option(min=1, help="Of rows in a frame; as nodes send them: 2 MiB.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="For each, each round.")] = 1.0,
    rounds: Annotated[int, typer.Option(min=1, max=1000)] = 3,
    every_transfer: Annotated[
        bool, typer.Option("--every-transfer", help="Its figures too, in --json and -o.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it as YAML.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a wire with real chunks of KV, from packed rows to restored cells.

    \b
    On the machine that would decode: hetero profile link --listen PORT --shape NAME
    On the one that would prefill:    hetero profile link HOST:PORT
    """
    # As in a node: packing is one thread's work, beside others. Before numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if (address is None) == (listen is None):
        raise ConfigError("link: need either HOST:PORT of a listening end, or --listen PORT here")
    if listen is not None:
        name, layout = _whose(model, shape, kv_k, kv_v)
        _listen(listen, name, layout, tokens, _transport(transport), as_json=as_json)
        return
    if model is not None or shape is not None or transport != "tcp":
        raise ConfigError("link: --model, --shape and --transport belong to the listening end")
    assert address is not None
    modes = _modes(seals, connections)
    found = _measure(address, modes, frame_bytes, seconds, rounds, every_transfer=every_transfer)
    from hetero.cli.profile_tables import print_link
    from hetero.profile.document import document

    if output is not None:
        save_profile(found, output)
    if as_json:
        print_json(document(found))
    else:
        print_link(found)


def _whose(model: str | None, shape: str | None, kv_k: str, kv_v: str) -> "tuple[str, KVLayout]":
    """A model's name, and its cache's layout."""
    from hetero.kv.layout import model_layout

    if (model is None) == (shape is None):
        raise ConfigError("link --listen: need either --model FILE or --shape NAME, to know the KV")
    if model is not None:
        from hetero.cli.options import open_model

        path, spec = open_model(model)
        return path.stem, model_layout(spec, kv_k, kv_v)
    from hetero.model.shapes import parse_shape

    assert shape is not None
    parsed, _ = parse_shape(shape)
    return parsed.name, model_layout(parsed, kv_k, kv_v)


def _transport(name: str) -> "TransportName":
    from typing import get_args

    from hetero.messages import TransportName

    for known in get_args(TransportName):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise ConfigError(f"transport: need one of {', '.join(get_args(TransportName))}, have {name!r}")


def _listen(
    where: str,
    name: str,
    layout: "KVLayout",
    tokens: int,
    transport: "TransportName",
    *,
    as_json: bool,
) -> None:
    from hetero.profile.link.cache_skeleton import cache_context
    from hetero.profile.link.key import new_key
    from hetero.profile.link.listener import MAX_TRANSFERS, LinkListener
    from hetero.transport.connection import split_address
    from hetero.transport.door import Door

    door = Door(_own_address(where))
    receiver = None
    if transport != "tcp":
        from hetero.transport.nixl_sink import SlotReceiver

        interface_of = split_address(door.address)[0]
        receiver = SlotReceiver(
            transport, _NIXL_SLOTS, num_transfers=MAX_TRANSFERS, interface_of=interface_of
        )
    key = new_key()
    with cache_context(layout, num_sequences=MAX_TRANSFERS, num_tokens=tokens) as context:
        listener = LinkListener(
            door, key, model=name, layout=layout, context=context, receiver=receiver
        )
        try:
            if as_json:
                print_json({"address": door.address, "key": key})
            else:
                host_port = door.address.removeprefix("tcp://")
                typer.echo(
                    f"On the other machine:\n\n  hetero profile link {host_port}\n\n"
                    f"It asks for this key:  {key}\n\nCtrl-C ends."
                )
            threading.Event().wait()
        except (KeyboardInterrupt, SystemExit):
            print_progress("stopping")
        finally:
            listener.close()
            if receiver is not None:
                receiver.close()


def _own_address(where: str) -> str:
    """Where to listen; without a host, at this machine's only address on a network."""
    host, _, port = where.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"listen: need PORT or HOST:PORT, have {where!r}")
    if host in ("0.0.0.0", "*", "::", "[::]"):
        raise ConfigError(f"listen: need the address of one interface, have {host}")
    return f"tcp://{host or _only_address(port)}:{port}"


def _only_address(port: str) -> str:
    import socket

    import psutil

    addresses = {
        name: address.address
        for name, all_of_it in psutil.net_if_addrs().items()
        for address in all_of_it
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    }
    if len(addresses) == 1:
        return next(iter(addresses.values()))
    here = ", ".join(f"{address} ({name})" for name, address in addresses.items()) or "none"
    raise ConfigError(f"listen: need HOST:{port}, for this machine's addresses are: {here}")


def _modes(seals: str, connections: str) -> "list[Mode]":
    from typing import get_args

    from hetero.messages import SealName
    from hetero.profile.link.dialer import Mode
    from hetero.transport.window import MAX_CONNECTIONS

    names = [name.strip() for name in seals.split(",")]
    known = get_args(SealName)
    for name in names:
        if name not in known:
            raise ConfigError(f"seals: need some of {', '.join(known)}, have {name!r}")
    numbers: list[int | None] = []
    for word in connections.split(","):
        number = word.strip()
        if number == "auto":
            numbers.append(None)
        elif number.isdigit() and 1 <= int(number) <= MAX_CONNECTIONS:
            numbers.append(int(number))
        else:
            raise ConfigError(
                f"connections: need auto or numbers of 1 to {MAX_CONNECTIONS}, have {number!r}"
            )
    return [Mode(seal, number) for seal in known if seal in names for number in numbers]


def _measure(
    address: str,
    modes: "list[Mode]",
    frame_bytes: int | None,
    seconds: float,
    rounds: int,
    *,
    every_transfer: bool,
) -> "LinkProfile":
    from hetero.profile.link.dialer import LinkDialer
    from hetero.profile.link.packed_prompt import FRAME_BYTES

    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"link: need HOST:PORT, have {address!r}")
    key = os.environ.get(_KEY_VARIABLE)
    if key is None:
        if not sys.stdin.isatty():
            raise ConfigError(
                f"key: need the one that the listening end printed, in {_KEY_VARIABLE}"
            )
        key = getpass("The key that the listening end printed: ")
    with LinkDialer(f"tcp://{address}", key, frame_bytes or FRAME_BYTES) as dialer:
        return dialer.measure(
            modes,
            seconds=seconds,
            num_rounds=rounds,
            say=print_progress,
            every_transfer=every_transfer,
        )
