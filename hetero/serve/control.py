"""A node's line to the router: hello, heartbeats, and messages both ways.

The node dials; the router's address may come and go, the line is the same.
"""

import logging
import time
from collections.abc import Callable, Iterator
from shlex import quote

import zmq
from zmq.utils.monitor import recv_monitor_message

from hetero.errors import ConfigError, PeerError
from hetero.messages import (
    Goodbye,
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
from hetero.transport.control_socket import RouterContact, dial

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0

# What a router that is there takes to answer a hello, and how often its absence is worth a line.
_WELCOME_WAIT_S = 5.0
_COMPLAIN_EVERY_S = 60.0

# What tells how far a line came: nothing of one that never connected.
_HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)
_LINE_EVENTS = zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | _HANDSHAKE_FAILED

# A prompt of a million tokens is 5 MB of ids; nothing else on this line is large.
MAX_CONTROL_BYTES = 64 * 2**20


# For the last message to leave, if the router is there to take it.
_GOODBYE_MS = 500


class ControlLink:
    """Not thread-safe."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        router: RouterContact,
        info: NodeInfo,
        load: Callable[[], NodeLoad],
    ) -> None:
        self.socket = dial(context, router, info.instance, MAX_CONTROL_BYTES)
        self._monitor = self.socket.get_monitor_socket(_LINE_EVENTS)
        self._line_events = 0  # those seen, as bits
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
                    logger.info(
                        "router %s knows this node as %s", self._router.address, self._info.name
                    )
                case Unwelcome():
                    raise ConfigError(
                        f"router {self._router.address} refuses this node: {message.reason}"
                    )
                case _:
                    yield message

    def beat(self) -> float:
        """Send a heartbeat if one is due; seconds until the next."""
        now = time.monotonic()
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + HEARTBEAT_S
            self.send(Heartbeat(load=self._load()))
        self._watch_line()
        if not self._is_welcome and now >= self._next_complaint:
            self._next_complaint = now + _COMPLAIN_EVERY_S
            logger.warning(
                "router %s: need an answer, have none: %s", self._router.address, self._suspicion()
            )
        return self._next_heartbeat - now

    def close(self) -> None:
        """Says goodbye, so that nobody waits for this node."""
        self.send(Goodbye())
        self.socket.disable_monitor()
        self._monitor.close()
        self.socket.close(linger=_GOODBYE_MS)

    def _watch_line(self) -> None:
        while self._monitor.poll(0):
            self._line_events |= recv_monitor_message(self._monitor)["event"]

    def _suspicion(self) -> str:
        """What is likely wrong. A router does not tell those it does not know."""
        router = self._router
        if self._line_events & zmq.EVENT_HANDSHAKE_SUCCEEDED:
            return "the keys are right, but it says nothing; does it hang, or was the key revoked?"
        if self._line_events & _HANDSHAKE_FAILED:
            return (
                "it hangs up. Either it does not know this node's key (on its machine: hetero keys "
                f"allow {quote(self._info.name)} {quote(router.key.public)}), or its key is not "
                f"{router.router_key} (there: hetero keys list), or it is no router"
            )
        if self._line_events:
            return "something listens there, but says nothing; is it a router, and does it hang?"
        return "nothing listens there; is it running, and reachable?"
