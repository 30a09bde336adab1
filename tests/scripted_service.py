"""A router that says what a test wrote down: for what a real one does only when things go wrong."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from hetero.messages import Finished, Token, TokenLogprob
from hetero.routing.route import Route
from hetero.serve.service import Request, ServedModel, Summary, Timings, Update

SUMMARY = Summary(
    route=Route(kind="local", decode_node="d0", prefill_node=None, reason="the prompt is short"),
    timings=Timings(prefill_s=0.5, ttft_s=0.6),
    kv_bytes=4096,
    num_chunks=2,
    kv_k="q8_0",
)


class Silence:
    """A step of a script that never ends."""


Step = Update | Exception | Silence


class ScriptedService:
    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self.script: Sequence[Step] = ()
        self.requests: list[Request] = []
        self.started = threading.Event()
        self.closed = threading.Event()

    async def generate(self, request: Request) -> AsyncGenerator[Update, None]:
        self.requests.append(request)
        self.started.set()
        try:
            for step in self.script:
                if isinstance(step, Silence):
                    await asyncio.Event().wait()
                elif isinstance(step, Exception):
                    raise step
                else:
                    yield step
                    await asyncio.sleep(0)
        finally:
            self.closed.set()

    def status(self) -> dict[str, Any]:
        return {"cluster": "test", "nodes": []}

    def metrics(self) -> str:
        return "# TYPE hetero_queue gauge\nhetero_queue 0\n"


def tokens(ids: Sequence[int], *, choice: int = 0, num_top: int | None = None) -> list[Token]:
    """Tokens with made-up log-probabilities: -1, -2 ... and alternatives 10, 11 ... below them."""
    return [
        Token(
            request_id="r",
            choice=choice,
            index=index,
            token=token,
            logprob=None
            if num_top is None
            else TokenLogprob(
                token,
                -1.0 - index,
                tuple((10 + rank, -2.0 - index - rank) for rank in range(num_top)),
            ),
        )
        for index, token in enumerate(ids)
    ]


def stop(choice: int = 0) -> Finished:
    return Finished(request_id="r", choice=choice, reason="stop")


def length(choice: int = 0) -> Finished:
    return Finished(request_id="r", choice=choice, reason="length")
