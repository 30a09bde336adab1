"""Transfer messages over ZeroMQ: sinks listen, sources dial out. Rows travel as a second part.

Not thread-safe: one thread per link. Encryption and RDMA will come in beside this file, behind the
same three calls.
"""

import logging
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import zmq

from hetero.errors import PeerError
from hetero.messages import (
    Message,
    ToSink,
    ToSource,
    decode_to_sink,
    decode_to_source,
    encode,
)
from hetero.transport.control_socket import bind, set_link_options

logger = logging.getLogger(__name__)

# Frames aim at 1-4 MiB. A single layer of a long chunk is split by tokens, so nothing honest comes
# near this; ZeroMQ drops the connection of whoever sends more.
MAX_FRAME_BYTES = 16 * 2**20

# Below this a copy costs less than ZeroMQ's bookkeeping for a shared buffer.
_ZERO_COPY_BYTES = 64 * 1024


class SinkLink:
    """The listening side. `peer` is ZeroMQ's name of a connection, good for replies."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", address: str) -> None:
        self.socket = context.socket(zmq.ROUTER)
        set_link_options(self.socket, MAX_FRAME_BYTES)
        self.address = bind(self.socket, address)

    def send(self, peer: bytes, message: ToSource) -> None:
        self.socket.send_multipart([peer, encode(message)])

    def receive(self) -> Iterator[tuple[bytes, ToSink, memoryview | None]]:
        """Everything that has come; malformed messages are logged and dropped."""
        while self.socket.poll(0):
            peer, *parts = self.socket.recv_multipart(copy=False)
            try:
                if not 1 <= len(parts) <= 2:
                    raise PeerError(f"message: need 1 or 2 parts, have {len(parts)}")
                message = decode_to_sink(parts[0].buffer)
            except PeerError as error:
                logger.warning("data from %s dropped: %s", peer.bytes.hex(), error)
                continue
            yield peer.bytes, message, parts[1].buffer if len(parts) == 2 else None

    def close(self) -> None:
        self.socket.close()


class SourceLink:
    """The dialling side, one per sink."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", address: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        set_link_options(self.socket, MAX_FRAME_BYTES)
        self.socket.connect(address)

    def send(self, message: Message, rows: npt.NDArray[np.uint8] | None = None) -> None:
        """Queue a message. `rows` must not be written to any more."""
        if rows is None:
            self.socket.send(encode(message))
            return
        self.socket.send(encode(message), zmq.SNDMORE)
        flat = np.ascontiguousarray(rows).reshape(-1)
        if flat.nbytes < _ZERO_COPY_BYTES:
            self.socket.send(flat.data)
        else:
            self.socket.send(flat.data, copy=False)

    def receive(self, timeout_s: float = 0.0) -> Iterator[ToSource]:
        """Everything that has come, waiting up to `timeout_s` for the first message."""
        timeout_ms = int(timeout_s * 1000)
        while self.socket.poll(timeout_ms):
            timeout_ms = 0
            try:
                message = decode_to_source(self.socket.recv())
            except PeerError as error:
                logger.warning("reply dropped: %s", error)
                continue
            yield message

    def close(self) -> None:
        self.socket.close()
