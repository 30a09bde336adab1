"""A process that works for a measurement. Takes requests from its pipe until that is closed, and
dies when its parent does. Arguments: the parent's id, the pipe's descriptor, cores to run on.

Imports no numpy: requests name functions, and those import it, on the right core by then.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from hetero.errors import EngineError, HeteroError

_PR_SET_PDEATHSIG = 1


class Prepare(NamedTuple):
    """Make the task that later calls are about; the former one's memory is free before."""

    factory: Callable[..., object]
    arguments: tuple[object, ...]


class Call(NamedTuple):
    """Reply with `function(task, *arguments)`."""

    function: Callable[..., object]
    arguments: tuple[object, ...]


def main() -> None:
    parent, pipe = int(sys.argv[1]), int(sys.argv[2])
    cpus = [int(cpu) for cpu in sys.argv[3].split(",")]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        # It may have died before the order was given.
        if os.getppid() != parent:
            sys.exit(1)
    # Ctrl-C reaches the whole group; the parent ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _serve(Connection(pipe), cpus)


def _serve(connection: "Connection[Any, Any]", cpus: list[int]) -> None:
    connection.send(_pin(cpus))
    task: object = None
    while True:
        try:
            request = connection.recv()
            reply: object = None
            if isinstance(request, Prepare):
                task = None
                task = request.factory(*request.arguments)
            else:
                reply = request.function(task, *request.arguments)
        except EOFError:
            return
        except HeteroError as error:
            reply = error
        except Exception as error:
            reply = EngineError(f"need {request!r} done, have {type(error).__name__}: {error}")
        connection.send(reply)


def _pin(cpus: list[int]) -> EngineError | None:
    """Before anything is allocated: memory lies on the NUMA node of the core that touches it first.
    None where it worked, or where there is no such thing."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        allowed = sorted(os.sched_getaffinity(0))
        return EngineError(f"need to run on {cpus}, have {allowed}: {error.strerror}")
    return None
