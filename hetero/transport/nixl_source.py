"""Sending rows through NIXL: sealed into registered memory, and written from there to a slot."""

import queue
import time

import msgspec
import numpy as np
import numpy.typing as npt

from hetero.errors import PeerError
from hetero.messages import Credit, Ready, Rows, SlotRing, Ticket, ToSource, TransportName, encode
from hetero.transport.carrier import InlineSender, RowSender
from hetero.transport.connection import Connection
from hetero.transport.nixl_agent import NixlAgent, WriteStillOn
from hetero.transport.seals import TAG_BYTES
from hetero.transport.slots import BorrowedSlots

# One for each connection of a transfer; more only wait for the same wire.
_NUM_BUFFERS = 8


class SendBuffers:
    """A node's registered memory, from which all its transfers write."""

    def __init__(
        self,
        transport: TransportName,
        *,
        allow_tcp: bool = False,
        interface_of: str | None = None,
    ) -> None:
        """allow_tcp: rows may go over the connections where a decode node has nothing else.

        Raises: ConfigError if NIXL can't do it here.
        """
        self.agent = NixlAgent(transport, _NUM_BUFFERS, interface_of=interface_of)
        self.agent.prove()
        self.allow_tcp = allow_tcp
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(_NUM_BUFFERS):
            self._free.put(index)

    def take(self, limit_s: float) -> int:
        try:
            return self._free.get(timeout=limit_s)
        except queue.Empty:
            raise PeerError(f"send buffers: need one within {limit_s:g} s, have none") from None

    def give_back(self, index: int) -> None:
        self._free.put(index)

    def close(self) -> None:
        self.agent.close()


def row_sender(ticket: Ticket, buffers: SendBuffers | None) -> RowSender:
    """The way that both ends have.

    Raises: PeerError if that is only the connections, and they have to do better.
    """
    if ticket.ring is not None and buffers is not None:
        return SlotSender(ticket, ticket.ring, buffers)
    if buffers is not None and not buffers.allow_tcp:
        raise PeerError(
            f"transport: need {buffers.agent.transport} at both ends, the decode node at "
            f"{ticket.address} has tcp; set the same in both nodes' files, or `allow_tcp`"
        )
    return InlineSender()


class SlotSender:
    """A `carrier.RowSender`."""

    writes_apart = True
    min_connections = 2  # one thread seals while the other waits for its write

    def __init__(self, ticket: Ticket, ring: SlotRing, buffers: SendBuffers) -> None:
        self._ticket = ticket
        self._ring = ring
        self._buffers = buffers
        self._slots = BorrowedSlots(())
        self._is_inline = False
        self._heard_at = 0.0

    def connect(self) -> None:
        self._buffers.agent.connect(self._ring)

    def take(self, message: ToSource) -> None:
        self._heard_at = time.monotonic()
        match message:
            case Ready(slots=()) if self._buffers.allow_tcp:
                self._is_inline = True
            case Ready(slots=()):
                raise PeerError("receive slots: need one, the decode node lent none")
            case Ready() if max(message.slots) >= self._ring.num_slots:
                raise PeerError("receive slots: need some of the ring's, have others")
            case Ready():
                self._slots = BorrowedSlots(message.slots)
            case Credit():
                self._slots.credited(message.frame)

    def has_room(self) -> bool:
        return self._is_inline or self._slots.has_free

    def assign(self, header: Rows) -> Rows:
        if self._is_inline:
            return header
        return msgspec.structs.replace(header, slot=self._slots.take(header.frame))

    def send(self, connection: Connection, header: Rows, rows: npt.NDArray[np.uint8]) -> None:
        if header.slot is None:
            connection.send(encode(header), rows)
            return
        if rows.nbytes + TAG_BYTES > self._ring.slot_bytes:
            raise PeerError(
                f"rows: need at most {self._ring.slot_bytes - TAG_BYTES} bytes in a frame, the "
                f"size of the decode node's receive slots, have {rows.nbytes}"
            )
        header = msgspec.structs.replace(header, slot_bytes=rows.nbytes)
        index = self._buffers.take(self._ticket.lease_s)
        try:
            room = self._buffers.agent.slot(index)
            connection.send_apart(
                encode(header), rows, room, lambda sealed: self._write(index, sealed, header)
            )
        except WriteStillOn:
            raise  # what lies in the buffer may still be sent: nothing else may go there
        except BaseException:
            self._buffers.give_back(index)
            raise
        self._buffers.give_back(index)

    def _write(self, index: int, sealed: memoryview, header: Rows) -> None:
        assert header.slot is not None
        lease_s = self._ticket.lease_s
        # Who was stopped for so long has lost its slots, and is about to hear of it.
        if time.monotonic() - self._heard_at > lease_s:
            raise PeerError(f"decode node: need a sign of life within {lease_s:g} s, have none")
        self._buffers.agent.write(index, sealed.nbytes, self._ring, header.slot, lease_s)
