"""Receiving rows through NIXL: sources write them, sealed, into slots that they were lent."""

import logging
import threading
import time

from hetero.errors import PeerError
from hetero.messages import Rows, SlotRing, Ticket, TransportName
from hetero.transport.connection import Connection
from hetero.transport.nixl_agent import NixlAgent
from hetero.transport.seals import TAG_BYTES
from hetero.transport.slots import SlotBook

logger = logging.getLogger(__name__)

# A source that was stopped writes nothing once its lease is over, so twice is enough.
_QUARANTINE_LEASES = 2


class SlotReceiver:
    """A `carrier.RowReceiver`."""

    def __init__(
        self,
        transport: TransportName,
        num_slots: int,
        *,
        num_transfers: int,
        allow_tcp: bool = False,
        interface_of: str | None = None,
    ) -> None:
        """num_transfers: at once. allow_tcp: rows may come over the connections, too.

        Raises: ConfigError if NIXL can't do it here.
        """
        self._agent = NixlAgent(transport, num_slots, interface_of=interface_of)
        self._agent.prove()
        self.ring: SlotRing | None = self._agent.ring()
        self._book = SlotBook(num_slots, num_transfers)
        self._lock = threading.Lock()  # of the book
        self._allow_tcp = allow_tcp

    @property
    def num_free(self) -> int:
        with self._lock:
            return self._book.num_free(time.monotonic())

    def lend(self, ticket: Ticket) -> tuple[int, ...]:
        with self._lock:
            slots = self._book.lend(ticket.ticket_id, time.monotonic())
        if not slots and not self._allow_tcp:
            raise PeerError(
                "receive slots: need one, have none free; raise `nixl_slots` of the decode node"
            )
        return slots

    def rows(
        self, ticket: Ticket, header: Rows, inline: memoryview | None, connection: Connection
    ) -> memoryview | None:
        if header.slot is None:
            if not self._allow_tcp:
                raise PeerError(
                    "rows: need them in a receive slot, have them on the connection; set the same "
                    "`transport` in both nodes' files, or `allow_tcp` in both"
                )
            return inline
        sealed_bytes = header.slot_bytes + TAG_BYTES
        with self._lock:
            is_lent = self._book.is_lent(header.slot, ticket.ticket_id)
        slot = self._agent.slot(header.slot) if is_lent else memoryview(b"")
        if sealed_bytes > slot.nbytes:
            raise PeerError(
                f"transfer {ticket.ticket_id}: need rows of at most {slot.nbytes} bytes in a slot "
                f"that it was lent, have {sealed_bytes} in slot {header.slot}"
            )
        return connection.open_apart(slot[:sealed_bytes])

    def release(self, ticket: Ticket, *, is_written_to: bool) -> None:
        with self._lock:
            if is_written_to:
                until = time.monotonic() + _QUARANTINE_LEASES * ticket.lease_s
                self._book.quarantine(ticket.ticket_id, until)
            else:
                self._book.take_back(ticket.ticket_id)

    def close(self) -> None:
        self._agent.close()
