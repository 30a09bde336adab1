"""Server-sent events, and the task that draws a request's updates so that a reader can wait.

The task owns the router's generator from start to end: closing the `Generation` cancels it in
the middle of whatever it awaits, without an await of the closer, who may be cancelled itself.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from fastapi import Request as HttpRequest
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from hetero.serve.service import Update

_T = TypeVar("_T")

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"

_encoder = msgspec.json.Encoder()


def event(fields: dict[str, Any]) -> bytes:
    return b"data: " + _encoder.encode(fields) + b"\n\n"


class ClientGone(Exception):
    """The client closed its connection: nobody is left to answer."""


@dataclass(frozen=True)
class _End:
    """The last thing in the queue: why there is no more."""

    error: Exception | None


class Generation:
    """A request under way. `close` as soon as nobody wants it any more; closing twice is fine."""

    def __init__(self, updates: AsyncGenerator[Update, None]) -> None:
        # Unbounded: a slow reader must not stall the batch it shares, and max_tokens bounds it.
        self._queue: asyncio.Queue[Update | _End] = asyncio.Queue()
        self._task = asyncio.create_task(self._draw(updates))

    async def next(self, timeout_s: float | None = None) -> Update | None:
        """The next update, or None after `timeout_s` without one.

        Raises: StopAsyncIteration at the end, or what the router raised.
        """
        try:
            async with asyncio.timeout(timeout_s):
                update = await self._queue.get()
        except TimeoutError:
            return None
        if not isinstance(update, _End):
            return update
        self._queue.put_nowait(update)  # for whoever asks again
        raise update.error or StopAsyncIteration

    def close(self, why: str | None = None) -> None:
        """`why` reaches the router; ANSWERED tells it that nothing went wrong."""
        self._task.cancel(why)

    async def _draw(self, updates: AsyncGenerator[Update, None]) -> None:
        try:
            async with aclosing(updates):
                async for update in updates:
                    self._queue.put_nowait(update)
        except Exception as error:  # whatever it is, it is this request's and goes to its reader
            self._queue.put_nowait(_End(error))
        else:
            self._queue.put_nowait(_End(None))


class EventStream(StreamingResponse):
    """Closes the generation whatever becomes of the connection, even before the first byte."""

    def __init__(self, events: AsyncIterable[bytes], generation: Generation) -> None:
        # The second header keeps nginx from collecting the events.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.close()


async def until_disconnect(request: HttpRequest, work: Coroutine[Any, Any, _T]) -> _T:
    """The work's result; cancels it when the client goes. The body must have been read.

    Raises: ClientGone
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnected(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
