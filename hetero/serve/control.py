"""A node's line to the router: hello, heartbeats, and messages both ways.

The node dials; the router's address may come and go, the line is the same.
"""

import logging
import time
from collections.abc import Callable, Iterator

import zmq

from hetero.errors import PeerError
from hetero.messages import (
    Heartbeat,
    Hello,
    Message,
    NodeInfo,
    NodeLoad,
    ToNode,
    WhoAreYou,
    decode_to_node,
    encode,
)
from hetero.transport.zmq_link import set_link_options

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0

# A prompt of a million tokens is 5 MB of ids; nothing else on this line is large.
MAX_CONTROL_BYTES = 64 * 2**20


class ControlLink:
    """Not thread-safe."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        router: str,
        info: NodeInfo,
        load: Callable[[], NodeLoad],
    ) -> None:
        self.socket = context.socket(zmq.DEALER)
        set_link_options(self.socket, MAX_CONTROL_BYTES)
        self.socket.setsockopt(zmq.IDENTITY, info.name.encode())
        self.socket.connect(router)
        self._info = info
        self._load = load
        self._next_heartbeat = 0.0
        self.send(Hello(info=info, load=load()))

    def send(self, message: Message) -> None:
        self.socket.send(encode(message))

    def receive(self) -> Iterator[ToNode]:
        """What the router wants of this node; a question who it is is answered here."""
        while self.socket.poll(0):
            try:
                message = decode_to_node(self.socket.recv())
            except PeerError as error:
                logger.warning("control message dropped: %s", error)
                continue
            if isinstance(message, WhoAreYou):
                self.send(Hello(info=self._info, load=self._load()))
            else:
                yield message

    def beat(self) -> float:
        """Send a heartbeat if one is due; seconds until the next."""
        now = time.monotonic()
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + HEARTBEAT_S
            self.send(Heartbeat(load=self._load()))
        return self._next_heartbeat - now

    def close(self) -> None:
        self.socket.close()
