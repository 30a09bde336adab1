"""`hetero profile node`: what this machine does, with one model."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetero.cli.output import AsJson, byte_bar, print_json, print_progress, size_text
from hetero.cli.profile_file import save_profile
from hetero.errors import ConfigError

if TYPE_CHECKING:
    from hetero.profile.node.run import ModelFile, NodeOptions
    from hetero.profile.node_profile import MachineProfile

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}

_BUDGET_S, _QUICK_BUDGET_S = 180.0, 30.0

# Options that say nothing without a model.
_OF_ENGINES = ("kv", "slots", "context", "chunk", "threads", "gpu_layers", "soak")

_TICK_S = 0.5
_LONGEST_SHOWN = 0.99


def node(
    command: typer.Context,
    model: Annotated[
        str | None, typer.Option("--model", "-m", "-M", help="A GGUF file, or `demo`.")
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="Random weights of a shape, made here: llama-3.1-8b-q4_k_m ..."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="30 s instead of 3 minutes.")] = False,
    budget: Annotated[
        float | None,
        typer.Option(
            min=5, max=86400, metavar="SECONDS", help="Seconds to measure, about; instead of 180."
        ),
    ] = None,
    kv: Annotated[
        str, typer.Option(metavar="K/V,...", help="Pairs of cache types: q8_0, f16, q8_0/q4_0 ...")
    ] = "q8_0,f16",
    slots: Annotated[int, typer.Option(min=1, max=255, help="Sequences at once.")] = 8,
    context: Annotated[int, typer.Option(min=64, max=2**20, help="Tokens of a sequence.")] = 4096,
    chunk: Annotated[int, typer.Option(min=1, max=8192, help="Tokens of a prefill step.")] = 512,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of the engine.  [default: the best]")
    ] = None,
    gpu_layers: Annotated[
        int,
        typer.Option(min=0, help="With so many on a GPU llama.cpp's prefill is measured, too."),
    ] = 0,
    soak: Annotated[
        str, typer.Option(metavar="TIME", help="Then one step on and on: 10m, 90s, 1h.")
    ] = "0s",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="[default: profiles/HOST_MODEL.yaml]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure this machine, and its engine on a model.

    Without a model: what it is, and its ceilings.
    """
    # One worker a core packs, and each worker's products are its own. Before numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from hetero.cli.profile_tables import print_machine, print_node
    from hetero.profile.document import (
        check_folder,
        document,
        machine_profile_name,
        profile_name,
    )
    from hetero.profile.node.run import NodeOptions, profile_machine, profile_node
    from hetero.profile.node_profile import NodeProfile

    if model is not None and shape is not None:
        raise ConfigError("profile node: need --model FILE or --shape NAME, have both")
    if model is None and shape is None:
        _refuse_options_of_engines(command)
    folder = output.parent if output is not None else Path("profiles")
    check_folder(folder)  # not after three minutes
    options = NodeOptions(
        budget_s=budget or (_QUICK_BUDGET_S if quick else _BUDGET_S),
        slots=slots,
        context_tokens=context,
        chunk_tokens=chunk,
        kv_types=_kv_types(kv),
        threads=threads,
        gpu_layers=gpu_layers,
        soak_s=_seconds(soak),
        disk_folder=folder,
    )
    measured = _model_file(model, shape, options)
    found: MachineProfile | NodeProfile
    if measured is None:
        found = profile_machine(options, print_progress)
    else:
        with _progress_bar(options.budget_s + options.soak_s) as progress:
            found = profile_node(measured, options, print_progress, progress)
    if isinstance(found, NodeProfile):
        name = profile_name(found.host, found.model.name, found.model.quantization)
    else:
        name = machine_profile_name(found.host)
    path = output or folder / name
    # Before it is written: a disk may be full by now.
    if as_json:
        print_json(document(found))
    elif isinstance(found, NodeProfile):
        print_node(found)
    else:
        print_machine(found)
    save_profile(found, path)


def _refuse_options_of_engines(command: typer.Context) -> None:
    """Raises: ConfigError for one that was given."""
    for name in _OF_ENGINES:
        source = command.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = name.replace("_", "-")
            raise ConfigError(
                f"profile node --{option}: need --model FILE or --shape NAME, have neither"
            )


def _kv_types(text: str) -> list[tuple[str, str]]:
    from hetero.kv.types import kv_type

    pairs = []
    for pair in text.split(","):
        k_type, _, v_type = pair.strip().partition("/")
        pairs.append((kv_type(k_type.lower()).name, kv_type((v_type or k_type).lower()).name))
    return list(dict.fromkeys(pairs))


def _seconds(text: str) -> float:
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not number.replace(".", "", 1).isdigit():
        raise ConfigError(f"soak: need a time like 10m, 90s or 1h, have {text!r}")
    return float(number) * _UNITS[unit]


def _model_file(model: str | None, shape: str | None, options: "NodeOptions") -> "ModelFile | None":
    from hetero.cli.options import open_model
    from hetero.model.fingerprint import fingerprint_model
    from hetero.profile.node.run import ModelFile

    if model is not None:
        path, spec = open_model(model)
        return ModelFile(path, spec, fingerprint_model(path))
    if shape is None:
        return None
    path, spec = open_model(str(_random_weights(shape, options)))
    return ModelFile(path, spec, None)


def _random_weights(text: str, options: "NodeOptions") -> Path:
    """The shape's file, in the user's cache, made if it isn't there.

    Raises: PlanError if a node of it would not fit into memory, ConfigError if the cache can't be
    written.
    """
    from hetero.model.random_spec import random_spec
    from hetero.model.shapes import parse_shape
    from hetero.model.synth import write_synthetic
    from hetero.profile.node.run import check_fits

    shape, quant = parse_shape(text)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / "hetero" / "shapes" / f"{shape.name}-{quant}.gguf"
    if os.path.isfile(path):
        return path
    spec = random_spec(shape, quant)
    check_fits(spec, options)  # not after tens of GiB are written
    _check_cache(path.parent)
    print_progress(f"writing {size_text(spec.weight_bytes)} of random weights to {path}")
    with byte_bar(f"writing {path.name}") as progress:
        return write_synthetic(shape, quant, path, progress=progress)


def _check_cache(folder: Path) -> None:
    """Raises: ConfigError if it can't be written."""
    from hetero.profile.document import check_folder

    try:
        check_folder(folder)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; let XDG_CACHE_HOME name a folder that can be written, or measure a file "
            "with --model"
        ) from None


@contextmanager
def _progress_bar(seconds: float) -> Iterator[Callable[[float], None]]:
    """On stderr, with the time that is left of `seconds`; nothing where that is no terminal.

    The budget is a clock, and so is the bar: it goes on while parts run that tell of no progress.
    What is told can only be further, where a part was done early.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("measuring"), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, refresh_per_second=2) as bar:
        task = bar.add_task("measuring", total=1.0)
        started, told, ended = time.monotonic(), 0.0, threading.Event()

        def tell(share: float) -> None:
            nonlocal told
            told = max(told, share)
            bar.update(task, completed=shown_share(time.monotonic() - started, seconds, told))

        def tick() -> None:
            while not ended.wait(_TICK_S):
                tell(0.0)

        clock = threading.Thread(target=tick, daemon=True)
        clock.start()
        try:
            yield tell
        finally:
            ended.set()
            clock.join()


def shown_share(elapsed_s: float, seconds: float, told: float) -> float:
    """Of the bar. A clock that is over leaves a little: only who measures knows when it is done."""
    return min(1.0, max(told, min(elapsed_s / seconds, _LONGEST_SHOWN)))
