"""Asks the allow-list about every key that knocks: ZeroMQ's authentication protocol (RFC 27)."""

import logging
import threading
import time

import zmq
from zmq.utils import z85

from hetero.transport.allow_list import AllowList

logger = logging.getLogger(__name__)

# A listener with a domain, enforced, refuses everyone while nobody answers for it.
DOMAIN = b"hetero"

_ENDPOINT = "inproc://zeromq.zap.01"

# At 300 ("temporary error") libzmq says nothing and hangs up, at once or when the time for the
# handshake is over; at 400 and 500 it sends the stranger an ERROR, which tells an unknown key from
# a router that is slow (zap_client.cpp, handle_zap_status_code).
_ADMITTED, _SILENTLY_NOT = b"200", b"300"

# Strangers do not fill the log.
_LOG_EVERY_S = 1.0


class ZapHandler:
    """Answers on a thread for all sockets of a context, and ends when the context is terminated.
    One that is admitted has its public key as `User-Id` in the metadata of its messages."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", allowed: AllowList) -> None:
        self._allowed = allowed
        self._log_next = 0.0
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(_ENDPOINT)
        self._thread = threading.Thread(target=self._run, name="zap", daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                version, request_id, *request = self._socket.recv_multipart()
                user = self._admit(request)
                status = _ADMITTED if user else _SILENTLY_NOT
                self._socket.send_multipart([version, request_id, status, b"", user, b""])
        except zmq.ContextTerminated:
            pass
        finally:
            self._socket.close()

    def _admit(self, request: list[bytes]) -> bytes:
        """The public key of one who may come in; empty of any other."""
        domain, address, _, mechanism, *credentials = request
        if domain != DOMAIN or mechanism != b"CURVE":
            return b""
        public_key: bytes = z85.encode(credentials[0])
        if public_key.decode() in self._allowed:
            return public_key
        now = time.monotonic()
        if now >= self._log_next:
            self._log_next = now + _LOG_EVERY_S
            logger.info(
                "%s: key %s is not on the allow-list, and gets no answer",
                address.decode("ascii", "replace"),
                public_key.decode(),
            )
        return b""
