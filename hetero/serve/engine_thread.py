"""The decode engine on its own thread: commands in, events out, nothing shared but snapshots."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from hetero.decode.engine import DecodeEngine, Event
from hetero.decode.sequence import Job
from hetero.errors import HeteroError
from hetero.messages import Token, failed
from hetero.transport.mailbox import Mailbox

_Command = Callable[[], list[Event]]


class EngineThread:
    """Steps the engine while it has work, and runs commands between steps."""

    def __init__(self, engine: DecodeEngine) -> None:
        self.events: Mailbox[list[Event] | BaseException] = Mailbox()
        self.num_streams = engine.context.config.num_streams
        # Snapshots taken between steps, for heartbeats.
        self.num_active = self.num_queued = self.kv_bytes_held = 0
        self._engine = engine
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        # Grammars compile here, not between two steps; a cancel must not overtake its job.
        self._in_order = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        self._in_order.submit(self._prepare, job)

    def _prepare(self, job: Job) -> None:
        try:
            sequences = self._engine.prepare(job)
        except HeteroError as error:
            self.events.put([failed(job.request_id, error)])
            return

        def command() -> list[Event]:
            self._engine.submit(job, sequences)
            return []

        self._commands.put(command)

    def join(
        self, request_id: str, blob: npt.NDArray[np.uint8], first_tokens: tuple[Token, ...]
    ) -> None:
        self._commands.put(
            lambda: _or_failed(
                request_id, lambda: self._engine.join(request_id, blob, first_tokens)
            )
        )

    def cancel(self, request_id: str) -> None:
        def command() -> list[Event]:
            self._engine.cancel(request_id)
            return []

        self._in_order.submit(self._commands.put, command)

    def take_events(self) -> list[Event]:
        """What has happened.

        Raises: whatever broke the engine thread: the process has to be restarted.
        """
        events: list[Event] = []
        for batch in self.events.take_all():
            if isinstance(batch, BaseException):
                raise batch
            events += batch
        return events

    def close(self) -> None:
        self._in_order.shutdown()
        self._commands.put(None)
        self._thread.join()
        self.events.close()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:  # not swallowed: `take_events` raises it again
            self.events.put(error)

    def _turn(self) -> bool:
        """Every waiting command, then one step; False when told to stop."""
        events: list[Event] = []
        while True:
            try:
                command = self._commands.get(block=not (self._engine.has_work or events))
            except queue.Empty:
                break
            if command is None:
                return False
            events += command()
            self._snapshot()
        self._post(events)
        # A restored sequence has joined before the step that follows it, which may take a second.
        for part in (self._engine.take_in, self._engine.read_chunk, self._engine.decode):
            self._post(part())
        return True

    def _post(self, events: list[Event]) -> None:
        self._snapshot()
        if events:
            self.events.put(events)

    def _snapshot(self) -> None:
        self.num_active = self._engine.num_active
        self.num_queued = self._engine.num_queued
        self.kv_bytes_held = self._engine.kv_bytes_held


def _or_failed(request_id: str, command: _Command) -> list[Event]:
    try:
        return command()
    except HeteroError as error:
        return [failed(request_id, error)]
