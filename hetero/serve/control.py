"""A node's line to the router: hello, heartbeats, and messages both ways.

The node dials; the router's address may come and go, the line is the same.
"""

import logging
import time
from collections.abc import Callable, Iterator

import zmq

from hetero.errors import ConfigError, PeerError
from hetero.messages import (
    Heartbeat,
    Hello,
    Message,
    NodeInfo,
    NodeLoad,
    ToNode,
    Unwelcome,
    Welcome,
    WhoAreYou,
    decode_to_node,
    encode,
)
from hetero.transport.zmq_link import set_link_options

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0

# What a router that is there takes to answer a hello, and how often its absence is worth a line.
_WELCOME_WAIT_S = 5.0
_COMPLAIN_EVERY_S = 60.0

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
        self._router = router
        self._next_heartbeat = 0.0
        self._next_complaint = time.monotonic() + _WELCOME_WAIT_S
        self._is_welcome = False
        self.send(Hello(info=info, load=load()))

    def send(self, message: Message) -> None:
        self.socket.send(encode(message))

    def receive(self) -> Iterator[ToNode]:
        """What the router wants of this node; who may talk with whom is settled here.

        Raises: ConfigError if the router will not have this node.
        """
        while self.socket.poll(0):
            try:
                message = decode_to_node(self.socket.recv())
            except PeerError as error:
                logger.warning("control message dropped: %s", error)
                continue
            match message:
                case WhoAreYou():
                    self.send(Hello(info=self._info, load=self._load()))
                case Welcome():
                    self._is_welcome = True
                    logger.info("router %s knows this node as %s", self._router, self._info.name)
                case Unwelcome():
                    raise ConfigError(f"router {self._router} refuses this node: {message.reason}")
                case _:
                    yield message

    def beat(self) -> float:
        """Send a heartbeat if one is due; seconds until the next."""
        now = time.monotonic()
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + HEARTBEAT_S
            self.send(Heartbeat(load=self._load()))
        if not self._is_welcome and now >= self._next_complaint:
            self._next_complaint = now + _COMPLAIN_EVERY_S
            logger.warning(
                "router %s: need an answer, have none yet; is it running, and reachable?",
                self._router,
            )
        return self._next_heartbeat - now

    def close(self) -> None:
        self.socket.close()
