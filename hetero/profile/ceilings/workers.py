"""The processes of a measurement, as the one that measures sees them: one for each core.

Processes, since threads of Python take turns; one for each core, so that memory is where its core
is. Closing ends them, and so does our own end, however it comes.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from multiprocessing import Pipe
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import hetero
from hetero.errors import EngineError, HeteroError
from hetero.profile.ceilings.passes import common_rate, common_window, repeat
from hetero.profile.ceilings.worker import Call, Prepare

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

# As a module's main program it would be there twice, and know no request by its type.
_MAIN = "from hetero.profile.ceilings.worker import main; main()"

# Importing torch from a slow disk, or touching a great deal of memory for the first time.
_REPLY_S = 120.0

# From the first worker's order to the moment when all begin: 128 orders take a few milliseconds.
_LEAD_S = 0.005
_LEAD_PER_WORKER_S = 0.0005

# A worker whose core does something else may come when the others have ended. They try again, and
# for so many times as long.
_LONGER = (1, 4, 16)


class Worker:
    """One process, on `cpus`, with a thread of BLAS for each.

    Every reply may be an EngineError: of what it was told to do, or that it ended.
    """

    def __init__(self, cpus: Sequence[int]) -> None:
        self._cpus = ",".join(map(str, cpus))
        self._pipe, theirs = Pipe()
        # The package that is running here, whichever is installed.
        package_path = str(Path(hetero.__file__).parents[1])
        others = os.environ.get("PYTHONPATH")
        environment = os.environ | dict.fromkeys(_THREAD_VARIABLES, str(len(cpus)))
        environment["PYTHONPATH"] = (
            f"{package_path}{os.pathsep}{others}" if others else package_path
        )
        command = [sys.executable, "-P", "-c", _MAIN]
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [*command, str(os.getpid()), str(theirs.fileno()), self._cpus],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=environment,
                )
            except OSError as error:
                self._pipe.close()
                raise EngineError(
                    f"core {self._cpus}: need a process, have {error.strerror}"
                ) from None

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, request: Prepare | Call) -> None:
        """Where it ended meanwhile, the reply will say so."""
        with suppress(OSError):
            self._pipe.send(request)

    def reply(self, within_s: float = _REPLY_S) -> Any:
        try:
            if not self._pipe.poll(within_s):
                raise EngineError(f"core {self._cpus}: need a reply in {within_s:.3g} s, have none")
            reply = self._pipe.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if isinstance(reply, HeteroError):
            raise type(reply)(f"core {self._cpus}: {reply}")
        return reply

    def close(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.wait()

    def _ended(self) -> EngineError:
        self._process.kill()
        code = self._process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return EngineError(
            f"core {self._cpus}: need its worker alive, have it ended ({how}); "
            "less memory may help if the system killed it"
        )


class Workers:
    """A worker for each of `groups`, a core or several. To be used as a context.

    On Linux they die with the thread that made them.
    """

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        self._started = ExitStack()
        self._workers: list[Worker] = []
        with ExitStack() as undo:
            undo.callback(self._started.close)
            for cpus in groups:
                worker = Worker(cpus)
                self._started.callback(worker.close)
                self._workers.append(worker)
            _replies(self._workers)
            undo.pop_all()

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self._workers]

    def prepare(
        self, factory: Callable[..., object], *arguments: object, longer_s: float = 0.0
    ) -> None:
        """Each makes itself a task; `factory` is a name of a module, as all that is sent.
        longer_s: that it may take, beyond what any reply may."""
        _ask(self._workers, Prepare(factory, arguments), longer_s)

    def call(self, function: Callable[..., Any], *arguments: object) -> list[Any]:
        """What `function(task, *arguments)` returns in each of them."""
        return _ask(self._workers, Call(function, arguments))

    def rate(self, method: str, seconds: float, among: slice = slice(None)) -> float:
        """Of `task.method`'s amounts, per second, by those workers together."""
        workers = self._workers[among]
        for longer in _LONGER:
            start = time.perf_counter() + _LEAD_S + _LEAD_PER_WORKER_S * len(workers)
            order = Call(repeat, (method, start, longer * seconds))
            passes = _ask(workers, order, longer * seconds)
            start, end = common_window(passes)
            if start < end:
                break
        return common_rate(passes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._started.close()


def _ask(workers: Sequence[Worker], request: Prepare | Call, seconds: float = 0.0) -> list[Any]:
    for worker in workers:
        worker.send(request)
    return _replies(workers, seconds + _REPLY_S)


def _replies(workers: Sequence[Worker], within_s: float = _REPLY_S) -> list[Any]:
    """All are waited for, so that none is left behind by an error of another."""
    replies, errors = [], []
    deadline = time.perf_counter() + within_s
    for worker in workers:
        try:
            replies.append(worker.reply(max(0.0, deadline - time.perf_counter())))
        except HeteroError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return replies
