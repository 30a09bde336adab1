"""One request on its way: what its nodes say of it, put in order for the client.

No I/O: the router feeds messages in, and takes updates and words to the nodes out.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from hetero.errors import (
    ConfigError,
    EngineError,
    HeteroError,
    ModelError,
    NodeLostError,
    PeerError,
    PlanError,
)
from hetero.messages import (
    Failed,
    Finished,
    FirstTokens,
    Generate,
    Joined,
    Message,
    NodeInfo,
    Prefill,
    Reserve,
    Reserved,
    Sent,
    Token,
)
from hetero.routing.route import Route
from hetero.serve.service import Request, Summary, Timings, Update

_ERRORS = {
    kind.__name__: kind
    for kind in (ConfigError, EngineError, ModelError, NodeLostError, PeerError, PlanError)
}

FromNode = Reserved | FirstTokens | Sent | Joined | Token | Finished | Failed


@dataclass(frozen=True)
class Heard:
    """A node's word on a request."""

    node: str
    message: FromNode


class Flight:
    """A request's progress. `opening` is said first; every message taken may ask for more."""

    def __init__(
        self, request: Request, route: Route, reader: NodeInfo, end_tokens: frozenset[int]
    ) -> None:
        """`reader` is the node that reads the prompt."""
        self.request = request
        self.route = route
        self._reader = reader
        self.timings = Timings()
        self.kv_bytes = 0
        self.num_chunks = 0
        self.busy_nodes = {n for n in (route.decode_node, route.prefill_node) if n is not None}
        self._end_tokens = frozenset() if request.sampling.ignore_eos else end_tokens
        self._next_index = [0] * request.num_choices
        self._ended = [False] * request.num_choices
        self._num_finished_by_decode = 0
        self._has_joined = False
        self._first_token_at = self._last_token_at = 0.0

    @property
    def num_tokens(self) -> int:
        """Of the longest choice, as far as it came."""
        return max(self._next_index)

    @property
    def metrics_route(self) -> str:
        """What its figures are counted under: an emulated device's are no part of real ones'."""
        return f"{self.route.kind}-emulated" if self._reader.emulated else self.route.kind

    @property
    def has_ended(self) -> bool:
        return all(self._ended)

    @property
    def awaits_transfer_report(self) -> bool:
        """Whether the answer is whole but the prefill node has yet to say what it sent."""
        return self.has_ended and self.route.prefill_node in self.busy_nodes and self._has_joined

    def needs(self, node: str) -> bool:
        """Whether the answer still depends on a node: not on the one whose KV has joined."""
        is_read = self._has_joined and node == self.route.prefill_node
        return node in self.busy_nodes and not is_read

    def opening(self) -> tuple[str, Message]:
        """The node to speak to first, and what to say."""
        request, route = self.request, self.route
        if route.decode_node is None:
            assert route.prefill_node is not None
            return route.prefill_node, self._prefill(None)
        if route.prefill_node is None:
            return route.decode_node, Generate(
                request_id=request.request_id,
                prompt=request.prompt,
                max_tokens=request.max_tokens,
                num_choices=request.num_choices,
                sampling=request.sampling,
            )
        return route.decode_node, Reserve(
            request_id=request.request_id,
            num_prompt_tokens=len(request.prompt),
            max_tokens=request.max_tokens,
            num_choices=request.num_choices,
            sampling=request.sampling,
        )

    def reply(self, message: Reserved) -> tuple[str, Message]:
        """The prefill node's order, once the decode node has room."""
        assert self.route.prefill_node is not None
        return self.route.prefill_node, self._prefill(message)

    def take(self, heard: Heard) -> Iterator[Update]:
        """What a node's message means for the client: nothing, after its last word. A node that is
        asked to renew a request just ended says Failed, and that may be read right after the end.

        Raises: the HeteroError a node failed with.
        """
        if heard.node not in self.busy_nodes:
            return
        message = heard.message
        match message:
            case FirstTokens():
                self.timings.prefill_s = message.prefill_s
                self.timings.pack_s = message.pack_s
                self.num_chunks = message.num_chunks
                if self.route.decode_node is None:
                    self.busy_nodes.discard(self.route.prefill_node or "")
                for token in message.tokens:
                    yield from self._first(token)
            case Token():
                yield from self._token(message)
            case Joined():
                self._join(message)
            case Sent():
                self.kv_bytes = message.kv_bytes
                self.timings.wire_s = message.wire_s
                self.timings.last_group_s = message.last_group_s
                self.busy_nodes.discard(self.route.prefill_node or "")
            case Finished():
                self._num_finished_by_decode += 1
                if self._num_finished_by_decode == self.request.num_choices:
                    self.busy_nodes.discard(self.route.decode_node or "")
                yield from self._end(message)
            case Failed():
                raise as_error(message)
            case _:
                raise PeerError(f"need no {type(message).__name__} now, have one")

    def summary(self) -> Summary:
        return Summary(
            route=self.route,
            timings=self.timings,
            kv_bytes=self.kv_bytes,
            num_chunks=self.num_chunks,
            prefill_engine=self._reader.engine,
            emulated=self._reader.emulated or None,
            attention=self._reader.attention,
            kv_k=self._reader.fingerprint.layout.k_type,
            kv_v=self._reader.fingerprint.layout.v_type,
        )

    def _prefill(self, reserved: Reserved | None) -> Prefill:
        return Prefill(
            request_id=self.request.request_id,
            prompt=self.request.prompt,
            num_choices=self.request.num_choices,
            sampling=self.request.sampling,
            ticket=reserved.ticket if reserved else None,
        )

    def _first(self, token: Token) -> Iterator[Update]:
        """A first token from the prefill node: the decode node will say it again, or not at all
        if the choice ends with it."""
        finished = Finished(request_id=token.request_id, choice=token.choice, reason="stop")
        if token.token in self._end_tokens:
            self._clock_token()
            yield from self._end(finished)
            return
        yield from self._token(token)
        if self.request.max_tokens == 1:
            yield from self._end(
                Finished(request_id=token.request_id, choice=token.choice, reason="length")
            )

    def _token(self, token: Token) -> Iterator[Update]:
        expected = self._next_index[token.choice]
        if token.index > expected:
            raise PeerError(
                f"choice {token.choice}: need token {expected} next, have token {token.index}"
            )
        if token.index == expected and not self._ended[token.choice]:
            self._next_index[token.choice] += 1
            self._clock_token()
            if token.index:
                spent = self._last_token_at - self._first_token_at
                self.timings.tpot_s = spent / (max(self._next_index) - 1)
            yield token

    def _clock_token(self) -> None:
        now = time.perf_counter()
        if not self._first_token_at:
            self._first_token_at = now
            self.timings.ttft_s = now - self.request.received_at
        self._last_token_at = now

    def _join(self, message: Joined) -> None:
        if self._has_joined:
            return  # further choices of the same prompt
        self._has_joined = True
        self.timings.restore_s = message.restore_s
        if self.route.prefill_node is None:
            self.timings.prefill_s = message.prefill_s
        elif self._first_token_at:
            # Both ends are this process's clock; the two one-way delays cancel out.
            self.timings.exposed_s = time.perf_counter() - self._first_token_at

    def _end(self, finished: Finished) -> Iterator[Update]:
        if not self._ended[finished.choice]:
            self._ended[finished.choice] = True
            yield finished


def as_error(message: Failed) -> HeteroError:
    """The error a node met, as the same kind here; unknown kinds are the engine's."""
    return _ERRORS.get(message.kind, EngineError)(message.message)
