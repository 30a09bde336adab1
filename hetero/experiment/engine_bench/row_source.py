"""A process that hands over one stored prompt again and again, at a pace: prefill for free."""

import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from hetero.errors import EngineError, PeerError
from hetero.experiment.child import child_process
from hetero.experiment.engine_bench.driven_engine import FIRST_TOKEN
from hetero.experiment.engine_bench.settings import Settings
from hetero.kv.rows import RowFrame
from hetero.llama.model import Model
from hetero.messages import Fingerprint, NodeInfo, Ticket, Token
from hetero.profile.states import States, state_frames
from hetero.transport.tcp_source import TcpSource
from hetero.transport.transfer import SourceTransfer

_CHUNK_TOKENS = 512
_FRAME_BYTES = 2 * 2**20  # what the prefill engines aim at

_STUCK_S = 60.0


class RowSource:
    """Hand-overs are asked for and done in order."""

    def __init__(self, pipe: "Connection[Any, Any]") -> None:
        self._pipe = pipe

    def hand_over(self, request_id: str, ticket: Ticket, over_s: float) -> None:
        """Send the prompt to a ticket's holder, its frames spread over `over_s`."""
        self._pipe.send((ticket, request_id, over_s))


@contextmanager
def row_source(settings: Settings, model_path: Path, sink: NodeInfo) -> Iterator[RowSource]:
    """A source for `sink`, of a state of `settings.context_tokens` in its layout."""
    layout = sink.fingerprint.layout
    with TemporaryDirectory(prefix="hetero-bench-") as folder:
        stored = Path(folder) / "state.npy"
        with Model(model_path) as model:
            states = States(model, layout, num_threads=settings.num_threads)
            np.save(stored, states.make(settings.context_tokens, 1, seed=0))
        ours, theirs = get_context("spawn").Pipe()
        with child_process(_serve, theirs, stored, settings.context_tokens, sink.fingerprint):
            theirs.close()
            try:
                ours.recv()  # it has read the state
            except EOFError:
                raise EngineError("row source: ended before it was ready") from None
            yield RowSource(ours)
            ours.close()


def _serve(
    pipe: "Connection[Any, Any]", stored: Path, num_tokens: int, fingerprint: Fingerprint
) -> None:
    frames = list(
        state_frames(
            np.load(stored),
            fingerprint.layout,
            num_tokens,
            1,
            chunk_tokens=_CHUNK_TOKENS,
            frame_bytes=_FRAME_BYTES,
        )
    )
    pipe.send("ready")
    while True:
        try:
            ticket, request_id, over_s = pipe.recv()
        except EOFError:
            return
        _send(SourceTransfer(ticket, fingerprint), frames, request_id, over_s)


def _send(transfer: SourceTransfer, frames: list[RowFrame], request_id: str, over_s: float) -> None:
    outcome: queue.SimpleQueue[PeerError | None] = queue.SimpleQueue()
    source = TcpSource(
        transfer, num_connections=None, on_credit=lambda num_bytes: None, on_end=outcome.put
    )
    started = time.perf_counter()
    for index, frame in enumerate(frames):
        due = started + over_s * index / len(frames)
        time.sleep(max(0.0, due - time.perf_counter()))
        source.put(frame)
    source.finish((Token(request_id, 0, 0, FIRST_TOKEN),))
    try:
        error = outcome.get(timeout=over_s + _STUCK_S)
    except queue.Empty:
        raise EngineError(f"transfer: need its end within {_STUCK_S:g} s, have none") from None
    if error is not None:
        raise error
