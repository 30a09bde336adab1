"""A process that hands over one stored prompt again and again, at a pace: prefill for free."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import zmq

from hetero.errors import EngineError
from hetero.experiment.engine_bench.child import child_process
from hetero.experiment.engine_bench.driven_engine import FIRST_TOKEN
from hetero.experiment.engine_bench.settings import Settings
from hetero.experiment.engine_bench.states import States, state_frames
from hetero.kv.rows import RowFrame
from hetero.llama.model import Model
from hetero.messages import Fingerprint, NodeInfo, Ticket, Token
from hetero.transport.transfer import SourceTransfer, State
from hetero.transport.zmq_link import SourceLink

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
    with zmq.Context() as context:
        link: SourceLink | None = None
        pipe.send("ready")
        while True:
            try:
                ticket, request_id, over_s = pipe.recv()
            except EOFError:
                return
            link = link or SourceLink(context, ticket.address)
            _send(SourceTransfer(ticket, fingerprint), link, frames, request_id, over_s)


def _send(
    transfer: SourceTransfer,
    link: SourceLink,
    frames: list[RowFrame],
    request_id: str,
    over_s: float,
) -> None:
    link.send(transfer.open())
    _listen(transfer, link, until=lambda: transfer.state is State.MOVING)
    started = time.perf_counter()
    for index, frame in enumerate(frames):
        due = started + over_s * index / len(frames)
        _listen(transfer, link, until=partial(_is_past, due))
        _listen(transfer, link, until=partial(transfer.may_send, frame.rows.nbytes))
        now = time.perf_counter()
        link.send(transfer.rows(frame, handed_over=now, now=now), frame.rows)
    link.send(transfer.done((Token(request_id, 0, 0, FIRST_TOKEN),)))
    _listen(transfer, link, until=lambda: transfer.is_acknowledged)


def _is_past(due: float) -> bool:
    return time.perf_counter() >= due


def _listen(transfer: SourceTransfer, link: SourceLink, *, until: Callable[[], bool]) -> None:
    started = time.perf_counter()
    while not until():
        for message in link.receive(timeout_s=0.002):
            transfer.receive(message, time.perf_counter())
        if time.perf_counter() - started > _STUCK_S:
            raise EngineError(f"transfer: need progress within {_STUCK_S:g} s, have none")
