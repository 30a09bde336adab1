"""The benchmark in the router's seat: it orders single nodes about over their control line.

Everything a node tells is stamped as it comes out of the socket, which is where its clients'
latency begins.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from hetero.errors import EngineError, PeerError
from hetero.experiment.engine_bench.driven_engine import GREEDY
from hetero.launch.cluster_keys import make_cluster_keys
from hetero.messages import (
    Failed,
    Finished,
    Hello,
    Message,
    NodeInfo,
    Renew,
    Reserve,
    Reserved,
    Ticket,
    ToRouter,
    decode_to_router,
    encode,
)
from hetero.serve.control import MAX_CONTROL_BYTES
from hetero.transport.control_socket import ControlListener, RouterKeys, split_received

_NAME = "seat"

_M = TypeVar("_M", bound=Message)

# Several times within a lease, as the router does.
_RENEW_S = 5.0

# A prefill of 2,000 tokens on one core is the longest that a node is silent for.
_SILENCE_S = 300.0


class RouterSeat:
    """Makes a key for each of the named nodes; `keys` says where they are."""

    def __init__(self, *nodes: str) -> None:
        self._directory = TemporaryDirectory()
        path = Path(self._directory.name)
        self.keys = make_cluster_keys(path, _NAME, nodes)
        self._listener = ControlListener(
            "tcp://127.0.0.1:0", RouterKeys.load(path, _NAME), MAX_CONTROL_BYTES
        )
        self._socket = self._listener.socket
        self.address = self._listener.address
        self._routes: dict[str, bytes] = {}
        self.nodes: dict[str, NodeInfo] = {}
        self._request_ids: set[str] = set()
        self._next_renewal = 0.0
        self._heard_at = time.monotonic()

    def hello(self, name: str) -> NodeInfo:
        """Wait for a node to report."""
        while name not in self.nodes:
            for _ in self.receive():
                pass
        return self.nodes[name]

    def send(self, node: str, message: Message) -> None:
        self._socket.send_multipart([self._routes[node], encode(message)])

    def reserve(self, node: str, request_id: str, num_prompt_tokens: int, max_tokens: int) -> None:
        self._request_ids.add(request_id)
        self.send(
            node,
            Reserve(
                request_id=request_id,
                num_prompt_tokens=num_prompt_tokens,
                max_tokens=max_tokens,
                num_choices=1,
                sampling=GREEDY,
            ),
        )

    def ticket(self, node: str, request_id: str, num_prompt_tokens: int, max_tokens: int) -> Ticket:
        self.reserve(node, request_id, num_prompt_tokens, max_tokens)
        return self.wait_for(Reserved, request_id).ticket

    def wait_for(self, kind: type[_M], request_id: str) -> _M:
        """The next message of a kind about a request; others meanwhile are dropped."""
        while True:
            for _, message in self.receive():
                if isinstance(message, kind) and getattr(message, "request_id", "") == request_id:
                    return message

    def receive(self) -> Iterator[tuple[float, ToRouter]]:
        """What has come, waiting a moment for it; with the time it came at.

        Raises: EngineError when a node failed at a request, or none says anything any more.
        """
        now = time.monotonic()
        if now >= self._next_renewal:
            self._next_renewal = now + _RENEW_S
            for node in self.nodes:
                self.send(node, Renew(request_ids=tuple(self._request_ids)))
        if now - self._heard_at > _SILENCE_S:
            raise EngineError(f"nodes: need a word within {_SILENCE_S:g} s, have none")
        timeout_ms = 100
        while self._socket.poll(timeout_ms):
            timeout_ms = 0
            peer, [raw] = split_received(self._socket.recv_multipart(copy=False))
            came_at = self._heard_at = time.monotonic()
            message = decode_to_router(raw)
            if isinstance(message, Hello):
                self._routes[message.info.name] = peer.route
                self.nodes[message.info.name] = message.info
            if isinstance(message, Finished):
                self._request_ids.discard(message.request_id)
            # Of a request that has ended, a node only says that it does not know it any more.
            if isinstance(message, Failed) and message.request_id in self._request_ids:
                raise PeerError(f"node failed at {message.request_id}: {message.message}")
            yield came_at, message

    def close(self) -> None:
        self._listener.close()
        self._directory.cleanup()
