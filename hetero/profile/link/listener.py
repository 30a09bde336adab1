"""The listening end of a link's measurement: a decode node's sink, and a cache to restore to.

One measurement at a time; the key is good until the process ends.
"""

import logging
import queue
import secrets
import select
import socket
import threading
import time
from functools import partial
from importlib.metadata import version

import msgspec

from hetero import __version__
from hetero.errors import PeerError
from hetero.kv.blob_memory import BlobMemory
from hetero.kv.layout import KVLayout
from hetero.kv.staging import StagingBlob, StateLayout
from hetero.llama.context import Context
from hetero.messages import Fingerprint, ModelFingerprint, SealName, Ticket
from hetero.profile.link.key import PATIENCE_S, SESSION, session_ticket
from hetero.profile.link.protocol import (
    Answer,
    AskUsage,
    Await,
    Describe,
    Description,
    Expect,
    Expected,
    ExpectPlain,
    Failure,
    Ping,
    PlainEnded,
    Pong,
    Request,
    Restored,
    Usage,
    hear_request,
    say,
)
from hetero.transport.carrier import RowReceiver
from hetero.transport.connection import answer
from hetero.transport.door import Door
from hetero.transport.handshake import Hello
from hetero.transport.seals import KEY_BYTES
from hetero.transport.tcp_sink import Arrived, Broke, TcpSink
from hetero.transport.transfer import SinkTransfer

logger = logging.getLogger(__name__)

# Transfers that a measurement may have under way: one arrives while the one before is restored.
MAX_TRANSFERS = 2

_CREDIT_BYTES = 64 * 2**20
_PLAIN_BYTES = 2**20


class LinkListener:
    """Serves until closed, on threads of its own."""

    def __init__(
        self,
        door: Door,
        key: str,
        *,
        model: str,
        layout: KVLayout,
        context: Context,
        receiver: RowReceiver | None = None,
    ) -> None:
        """receiver: of rows through NIXL; None where the connections carry them."""
        self._sink = TcpSink(door, receiver)
        self._context = context
        self._model = model
        # Of a model without weights; both ends compare it as nodes do.
        nothing = ModelFingerprint(
            hyperparameters=model, tokenizer="", chat_template="", tensors=""
        )
        self._fingerprint = Fingerprint(model=nothing, layout=layout)
        longest = StateLayout(layout, context.tokens_per_sequence, context.config.num_streams)
        self._memory = BlobMemory(longest.num_bytes)
        self._transfers: dict[str, SinkTransfer] = {}
        self._outcomes: dict[str, Arrived | Broke] = {}
        self._plain: dict[str, queue.SimpleQueue[PlainEnded]] = {}  # by ticket id
        self._next_slot = 0
        self._ticket = session_ticket(key, door.address)
        self._in_session = threading.Lock()
        door.expect(SESSION, self._ticket.key, self._welcome)

    def close(self) -> None:
        self._sink.close()

    def _welcome(self, hello: Hello, sock: socket.socket) -> None:
        threading.Thread(target=self._serve, args=(hello, sock), daemon=True).start()

    def _serve(self, hello: Hello, sock: socket.socket) -> None:
        if not self._in_session.acquire(blocking=False):
            sock.close()  # one measurement at a time
            return
        try:
            connection = answer(sock, hello, self._ticket)
            while (request := hear_request(connection)) is not None:
                say(connection, self._answer(request))
        except (PeerError, OSError) as error:
            logger.warning("measurement ended: %s", error)
        finally:
            for ticket_id in list(self._transfers):
                self._sink.forget(ticket_id, "the measurement is over")
            self._transfers.clear()
            self._outcomes.clear()
            for ticket_id in list(self._plain):
                self._sink.door.forget(ticket_id)
            self._plain.clear()
            sock.close()
            self._in_session.release()

    def _answer(self, request: Request) -> Answer:
        try:
            match request:
                case Describe():
                    return self._describe()
                case Ping():
                    return Pong()
                case Expect():
                    return Expected(ticket=self._expect(request.seal))
                case ExpectPlain():
                    return Expected(ticket=self._expect_plain())
                case Await():
                    return self._await(request.ticket_id)
                case AskUsage():
                    return Usage(cpu_s=time.process_time())
        except PeerError as error:
            return Failure(reason=str(error))

    def _describe(self) -> Description:
        return Description(
            host=socket.gethostname(),
            model=self._model,
            layout=self._fingerprint.layout,
            fingerprint=self._fingerprint,
            num_tokens=self._num_tokens,
            transport="tcp" if self._sink.ring is None else self._sink.ring.transport,
            versions={"hetero": __version__, "llama-cpp-python": version("llama-cpp-python")},
        )

    @property
    def _num_tokens(self) -> int:
        return self._context.tokens_per_sequence

    def _expect(self, seal: SealName) -> Ticket:
        if len(self._transfers) >= MAX_TRANSFERS:
            raise PeerError(f"need at most {MAX_TRANSFERS} transfers under way, have more")
        ticket = msgspec.structs.replace(self._new_ticket(seal), ring=self._sink.ring)
        config = self._context.config
        staging = StagingBlob(
            self._fingerprint.layout, self._num_tokens, config.num_streams, self._memory
        )
        transfer = SinkTransfer(ticket, self._fingerprint, staging, _CREDIT_BYTES)
        self._transfers[ticket.ticket_id] = transfer
        self._sink.expect(transfer)
        return ticket

    def _expect_plain(self) -> Ticket:
        ticket = self._new_ticket("none")
        self._plain[ticket.ticket_id] = queue.SimpleQueue()
        self._sink.door.expect(ticket.ticket_id, ticket.key, partial(self._take_plain, ticket))
        return ticket

    def _new_ticket(self, seal: SealName) -> Ticket:
        return Ticket(
            ticket_id=secrets.token_hex(8),
            address=self._sink.address,
            num_tokens=self._num_tokens,
            lease_s=PATIENCE_S,
            key=secrets.token_bytes(KEY_BYTES),
            seal=seal,
        )

    def _await(self, ticket_id: str) -> Answer:
        if ticket_id not in self._transfers:
            return self._await_plain(ticket_id)
        outcome = self._outcome(ticket_id)
        transfer = self._transfers.pop(ticket_id)
        if isinstance(outcome, Broke):
            raise PeerError(str(outcome.error))  # anew: the first one's stack stays out of it
        started = time.perf_counter()
        self._context.restore_sequence(self._next_slot, transfer.staging.take())
        self._next_slot = (self._next_slot + 1) % self._context.config.num_sequences
        seconds = time.perf_counter() - started
        return Restored(num_bytes=transfer.received_bytes, restore_s=seconds)

    def _outcome(self, ticket_id: str) -> Arrived | Broke:
        deadline = time.monotonic() + PATIENCE_S
        while ticket_id not in self._outcomes:
            left_s = deadline - time.monotonic()
            if not select.select([self._sink.events], [], [], max(0.0, left_s))[0]:
                raise PeerError(f"transfer: need its rows within {PATIENCE_S:g} s, have gaps")
            for outcome in self._sink.events.take_all():
                self._outcomes[outcome.ticket_id] = outcome
        return self._outcomes.pop(ticket_id)

    def _await_plain(self, ticket_id: str) -> PlainEnded:
        if ticket_id not in self._plain:
            raise PeerError(f"ticket {ticket_id}: need one that is out, have another")
        try:
            return self._plain[ticket_id].get(timeout=PATIENCE_S)
        except queue.Empty:
            raise PeerError(f"plain stream: need its end within {PATIENCE_S:g} s") from None
        finally:
            del self._plain[ticket_id]

    def _take_plain(self, ticket: Ticket, hello: Hello, sock: socket.socket) -> None:
        self._sink.door.forget(ticket.ticket_id)
        threading.Thread(target=self._count, args=(ticket, hello, sock), daemon=True).start()

    def _count(self, ticket: Ticket, hello: Hello, sock: socket.socket) -> None:
        """What a plain stream brings, and how long it takes: as iperf3's server does."""
        buffer = bytearray(_PLAIN_BYTES)
        num_bytes, started, ended = 0, 0.0, 0.0
        outcome = self._plain.get(ticket.ticket_id)
        with sock:
            try:
                answer(sock, hello, ticket)
                while received := sock.recv_into(buffer):
                    ended = time.perf_counter()
                    started = started or ended
                    num_bytes += received
            except OSError as error:
                logger.warning("plain stream ended: %s", error)
        if outcome is not None:
            outcome.put(PlainEnded(num_bytes=num_bytes, seconds=ended - started))
