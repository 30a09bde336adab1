"""Child processes of the benchmark: the nodes it measures, and the source that feeds them."""

import logging
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from hetero.errors import EngineError, HeteroError

_T = TypeVar("_T")

# A 1B model is dequantized by torch in half a minute.
_START_S = 300.0
_STOP_S = 10.0


@contextmanager
def child_process(
    target: Callable[..., None], *arguments: object
) -> Iterator[multiprocessing.process.BaseProcess]:
    """Run `target` in a process of its own, and end it. Spawned: a fork would share our memory."""
    process = multiprocessing.get_context("spawn").Process(
        target=target, args=arguments, daemon=True
    )
    process.start()
    try:
        yield process
    finally:
        process.terminate()
        process.join(_STOP_S)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


@contextmanager
def node_process(
    run: Callable[[_T, Callable[[dict[str, Any]], None]], None], config: _T
) -> Iterator[dict[str, Any]]:
    """A real node (`run` is one of `hetero.serve.start`); what it announces once it serves.

    Raises: EngineError with the node's own reason if it doesn't get that far.
    """
    ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
    with child_process(_run_node, run, config, theirs):
        theirs.close()
        if not ours.poll(_START_S):
            raise EngineError(f"node: need it to serve within {_START_S:g} s, it does not")
        try:
            announced = ours.recv()
        except EOFError:
            raise EngineError("node: ended before it served; its reason is above") from None
        if isinstance(announced, str):
            raise EngineError(f"node: {announced}")
        yield announced
        ours.close()


def _run_node(
    run: Callable[[_T, Callable[[dict[str, Any]], None]], None],
    config: _T,
    parent: "Connection[Any, Any]",
) -> None:
    logging.basicConfig(level=logging.WARNING)
    try:
        run(config, parent.send)
    except HeteroError as error:
        parent.send(str(error))


def peak_rss_bytes(pid: int) -> int:
    """The most memory a process ever had resident."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        raise EngineError(f"peak memory of process {pid}: need Linux's /proc, have none")
    for line in status.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise EngineError(f"peak memory: need VmHWM in {status}, have none")
