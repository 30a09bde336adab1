"""One request at a time per caller, as many callers as there are: each gets an answer, always."""

import asyncio
import resource
from contextlib import suppress

from hetero.experiment.load.answer import Answer
from hetero.experiment.load.client_key import authorization
from hetero.experiment.load.connection import Connections
from hetero.experiment.load.endpoint import Endpoint

# A socket each for more concurrent requests than a machine's ports allow.
_MAX_FILES = 65536


class _Waited(Answer):
    """Wakes who waits for its end."""

    def __init__(self) -> None:
        super().__init__()
        self.whole: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ended(self, at_s: float) -> None:
        super().ended(at_s)
        self._wake()

    def broke(self, at_s: float, why: str) -> None:
        super().broke(at_s, why)
        self._wake()

    def _wake(self) -> None:
        if not self.whole.done():
            self.whole.set_result(None)


class Client:
    def __init__(self, endpoint: Endpoint, *, timeout_s: float) -> None:
        """timeout_s: of a whole request, from the moment it is sent."""
        self._connections = Connections(endpoint.url)
        self._target = endpoint.target
        self._timeout_s = timeout_s
        self._headers = [
            ("Host", endpoint.url.netloc.rpartition("@")[2]),
            ("Content-Type", "application/json"),
            ("Accept", "text/event-stream"),
            *authorization(),
        ]
        _allow_files()

    async def connect(self, count: int) -> None:
        """Be ready for as many requests at once."""
        await self._connections.open_ahead(count)

    async def ask(self, body: bytes, name: str) -> Answer:
        """name: as the server's log will have it. Raises nothing: what goes wrong is in the
        answer."""
        headers = [*self._headers, ("X-Request-Id", name)]
        answer = _Waited()
        try:
            async with asyncio.timeout(self._timeout_s):
                if await self._exchange(headers, body, answer):
                    return answer
                answer = _Waited()
                await self._exchange(headers, body, answer, anew=True)
        except TimeoutError:
            answer.fail("timeout", f"no whole answer in {self._timeout_s:g} s")
        return answer

    async def _exchange(
        self, headers: list[tuple[str, str]], body: bytes, answer: _Waited, *, anew: bool = False
    ) -> bool:
        """False if the server had just given up a connection that nobody used: then it has not
        seen this request."""
        try:
            connection = await (self._connections.open() if anew else self._connections.get())
        except OSError as error:
            answer.fail("refused", f"can't connect: {error}")
            return True
        was_used, connection.has_answered = connection.has_answered, False
        try:
            connection.send(self._target, headers, body, answer)
            await answer.whole
        finally:
            # Where its answer is not whole (a timeout, the load's end) it can't be used again.
            self._connections.give_back(connection)
        return connection.has_answered or not was_used

    async def close(self) -> None:
        self._connections.close()
        await asyncio.sleep(0)  # sockets are closed in the loop's next pass


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
