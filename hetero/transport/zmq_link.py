"""Transfer messages over ZeroMQ: sinks listen, sources dial out. Rows travel as a second part.

Not thread-safe: one thread per link. Encryption and RDMA will come in beside this file, behind the
same three calls.
"""

import logging
from typing import Any

import zmq

from hetero.errors import ConfigError

logger = logging.getLogger(__name__)

# Frames aim at 1-4 MiB. A single layer of a long chunk is split by tokens, so nothing honest comes
# near this; ZeroMQ drops the connection of whoever sends more.
MAX_FRAME_BYTES = 16 * 2**20

# A dead peer is noticed by the connection within this time, whatever TCP thinks.
_HEARTBEAT_MS, _HEARTBEAT_TIMEOUT_MS = 2_000, 10_000

# Below this a copy costs less than ZeroMQ's bookkeeping for a shared buffer.
_ZERO_COPY_BYTES = 64 * 1024


def set_link_options(socket: "zmq.Socket[Any]", max_bytes: int) -> None:
    """What every hetero socket has: no lingering, bounded messages, dead peers noticed."""
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.SNDHWM, 0)  # credit bounds what is queued
    socket.setsockopt(zmq.RCVHWM, 0)


def bind(socket: "zmq.Socket[Any]", address: str) -> str:
    """Bind to `tcp://host:port` (port 0 or *: any); the address others can dial.

    Raises: ConfigError if the port is taken or the address is not of this machine.
    """
    try:
        socket.bind(address.replace(":0", ":*") if address.endswith(":0") else address)
    except zmq.ZMQError as error:
        raise ConfigError(f"{address}: can't listen there: {error.strerror.lower()}") from None
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)
