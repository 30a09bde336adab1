"""Keeps one process running: starts it, restarts it when it dies unasked, and ends it.

The process says on stdout, in one line of JSON, when it is ready; everything else it writes goes
to its log. It leads a process group of its own, so that Ctrl-C reaches only us, and it dies with
us whatever happens. What it is and what ready means is the caller's.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hetero.errors import ConfigError, EngineError, HeteroError
from hetero.launch import tether

logger = logging.getLogger(__name__)

# How `hetero` begins the line that says why it failed.
ERROR_MARK = "hetero: error: "

# A message longer than this is a dump, of which the log's path is the better half.
_MAX_QUOTED_CHARS = 2000


@dataclass(frozen=True, kw_only=True)
class Command:
    name: str
    argv: tuple[str, ...]
    log: Path
    environment: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """Waits `first_wait_s` before a restart, twice as long after each crash in a row. A run that
    stayed ready for `stable_s` was no crash in a row: whatever killed it may be bad luck."""

    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
    max_crashes: int = 5
    stable_s: float = 60.0

    def wait_s(self, num_crashes: int) -> float:
        return min(self.longest_wait_s, self.first_wait_s * 2.0 ** (num_crashes - 1))


@dataclass(frozen=True, kw_only=True)
class Ready:
    """Said at the first start and after each restart."""

    name: str
    pid: int
    announced: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class GaveUp:
    """The process won't be started again."""

    name: str
    error: HeteroError


Report = Callable[[Ready | GaveUp], None]


class Supervisor:
    """One process, on a thread of its own that outlives it. `report` is called on other threads."""

    def __init__(
        self, command: Command, report: Report, policy: RestartPolicy | None = None
    ) -> None:
        self._command = command
        self._report = report
        self._policy = policy or RestartPolicy()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # no process is started once `_stopping` is set
        self._ready_at: float | None = None
        self._thread = threading.Thread(target=self._run, name=command.name, daemon=True)

    def start(self) -> None:
        self._command.log.write_bytes(b"")
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """None while there is no process."""
        with self._lock:
            return None if self._process is None else self._process.pid

    def ask_to_stop(self) -> None:
        """SIGTERM, without waiting: several processes can end side by side."""
        with self._lock:
            self._stopping.set()
            if self._process is not None:
                self._process.terminate()

    def abort(self, grace_s: float) -> None:
        """SIGABRT, for what hangs: it has `grace_s` to tell its log where."""
        with self._lock:
            self._stopping.set()
            if self._process is not None:
                self._process.send_signal(signal.SIGABRT)
        self._thread.join(grace_s)

    def stop(self, grace_s: float) -> None:
        """End the process: SIGTERM, and SIGKILL when `grace_s` is over. Stopping twice is fine."""
        self.ask_to_stop()
        if self._thread.ident is None:
            return
        self._thread.join(grace_s)
        if self._thread.is_alive():
            logger.warning("%s: still there after %g s, killed", self._command.name, grace_s)
            with self._lock:
                if self._process is not None:
                    self._process.kill()
            self._thread.join()

    def _run(self) -> None:
        num_crashes = 0
        has_been_ready = False
        while True:
            status = self._run_once()
            if status is None or self._stopping.is_set():
                return
            ready_s = 0.0 if self._ready_at is None else time.monotonic() - self._ready_at
            has_been_ready |= self._ready_at is not None
            num_crashes = 1 if ready_s >= self._policy.stable_s else num_crashes + 1
            # One that fails before it was ever ready was told something wrong: it would again.
            if not has_been_ready or num_crashes >= self._policy.max_crashes:
                error = self._why(status, num_crashes, has_been_ready=has_been_ready)
                self._report(GaveUp(name=self._command.name, error=error))
                return
            wait_s = self._policy.wait_s(num_crashes)
            logger.warning(
                "%s: %s; restarting in %g s", self._command.name, _ending(status), wait_s
            )
            self._stopping.wait(wait_s)

    def _run_once(self) -> int | None:
        """The process's exit status; None if it was not to be started any more."""
        self._ready_at = None
        with self._command.log.open("ab", buffering=0) as log:
            with self._lock:
                if self._stopping.is_set():
                    return None
                tied = (sys.executable, "-I", "-S", tether.__file__, str(os.getpid()))
                process = self._process = subprocess.Popen(
                    tied + self._command.argv,
                    env=dict(self._command.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                )
            assert process.stdout is not None
            # Not read on this thread: a grandchild may hold the pipe open after the process died.
            reader = threading.Thread(
                target=self._read, args=(process.stdout, process.pid, log), daemon=True
            )
            reader.start()
            status = process.wait()
            with self._lock:
                self._process = None
            with suppress(ProcessLookupError, PermissionError):  # macOS: of a group of zombies
                os.killpg(process.pid, signal.SIGKILL)  # what it left behind
            reader.join()
            process.stdout.close()
        return status

    def _read(self, stdout: IO[bytes], pid: int, log: IO[bytes]) -> None:
        for line in stdout:
            announced = None if self._ready_at is not None else _json_object(line)
            if announced is None:
                log.write(line)
            else:
                self._ready_at = time.monotonic()
                self._report(Ready(name=self._command.name, pid=pid, announced=announced))

    def _why(self, status: int, num_crashes: int, *, has_been_ready: bool) -> HeteroError:
        name, log = self._command.name, self._command.log
        last = _last_line(log)
        _, is_told, message = last.partition(ERROR_MARK)
        how = f"{_ending(status)}; it said last: {last}" if last else _ending(status)
        if has_been_ready:
            crashes = "a crash" if num_crashes == 1 else f"{num_crashes} crashes in a row"
            return EngineError(f"{name}: {crashes}, so it is given up; {how} (its log: {log})")
        # The verb's own exit statuses: 2 is a mistake in what it was told.
        kind = ConfigError if status == 2 else EngineError
        return kind(f"{name}: {message if is_told and status > 0 else how} (its log: {log})")


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:_MAX_QUOTED_CHARS]


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        announced = json.loads(line)
    except ValueError:
        return None
    return announced if isinstance(announced, dict) else None


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
