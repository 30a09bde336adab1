"""Child processes of experiments: nodes, and work whose memory and log are not ours."""

import logging
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from hetero.errors import EngineError, HeteroError

_T = TypeVar("_T")
_R = TypeVar("_R")

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
) -> Iterator[None]:
    """A real node (`run` is one of `hetero.serve.start`), once it serves.

    Raises: EngineError with the node's own reason if it doesn't get that far.
    """
    ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
    with ours, child_process(_run_node, run, config, theirs):
        theirs.close()
        announced = _received(ours, "node")
        if isinstance(announced, HeteroError):
            raise announced
        yield


def _run_node(
    run: Callable[[_T, Callable[[dict[str, Any]], None]], None],
    config: _T,
    parent: "Connection[Any, Any]",
) -> None:
    logging.basicConfig(level=logging.WARNING)
    try:
        run(config, parent.send)
    except HeteroError as error:
        parent.send(error)


def result_from_child(
    function: Callable[..., _R], *arguments: object, longest_s: float = _START_S
) -> _R:
    """What a function returns in a process of its own, whose memory and log are not ours."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
    with ours, child_process(_send_result, theirs, function, arguments):
        theirs.close()
        result: _R = _received(ours, function.__name__, longest_s)
        return result


def _send_result(
    parent: "Connection[Any, Any]", function: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    parent.send(function(*arguments))


def _received(connection: "Connection[Any, Any]", name: str, longest_s: float = _START_S) -> Any:
    if not connection.poll(longest_s):
        raise EngineError(f"{name}: need a word within {longest_s:g} s, have none")
    try:
        return connection.recv()
    except EOFError:
        raise EngineError(f"{name}: its process ended early; the reason is above") from None


def peak_rss_bytes(pid: int) -> int:
    """The most memory a process ever had resident."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        raise EngineError(f"peak memory of process {pid}: need Linux's /proc, have none")
    for line in status.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise EngineError(f"peak memory: need VmHWM in {status}, have none")
