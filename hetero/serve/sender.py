"""A prefill node's transfers, counted: the computing thread hands frames over and never blocks.

Before each step it asks which requests may have rows at all, and `on_progress` tells it that the
answer may have changed.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from hetero.errors import PeerError
from hetero.kv.rows import RowFrame
from hetero.messages import Fingerprint, Message, SealName, Sent, Ticket, Token, failed
from hetero.tickets import STRENGTH
from hetero.transport.mailbox import Mailbox
from hetero.transport.nixl_source import SendBuffers, row_sender
from hetero.transport.tcp_source import TcpSource
from hetero.transport.transfer import SourceTransfer


@dataclass(eq=False, kw_only=True)
class Outbound:
    """One transfer. `source` is there once `Sender.open` has returned it."""

    request_id: str
    transfer: SourceTransfer
    source: TcpSource | None = None
    unacknowledged_bytes: int = 0  # handed over, not credited yet
    is_finished: bool = False  # every frame is handed over
    error: PeerError | None = None


class Sender:
    """All transfers of a prefill node. Results (`Sent`, `Failed`) go to the node's mailbox."""

    def __init__(
        self,
        fingerprint: Fingerprint,
        results: "Mailbox[Message | BaseException]",
        on_progress: Callable[[], None],
        *,
        weakest_seal: SealName = "aead",
        num_connections: int | None = None,
        buffers: SendBuffers | None = None,
    ) -> None:
        """`on_progress` is called on a sending thread when rows are credited or given up.

        buffers: to send rows from through NIXL; None where the connections carry them.
        """
        self.moved_bytes = 0
        self.unacknowledged_bytes = 0  # of all transfers
        self._lock = threading.Lock()  # of these counts, and of every outbound's fields
        self._on_progress = on_progress
        self._fingerprint = fingerprint
        self._results = results
        self._weakest_seal = weakest_seal
        self._num_connections = num_connections
        self._buffers = buffers
        self._live: set[Outbound] = set()

    def open(self, request_id: str, ticket: Ticket) -> Outbound:
        """Raises: PeerError if the ticket asks for less protection than this node agrees to, or
        for another transport than it has."""
        if STRENGTH.index(ticket.seal) < STRENGTH.index(self._weakest_seal):
            raise PeerError(
                f"seal: need {self._weakest_seal} or stronger, the decode node at "
                f"{ticket.address} has {ticket.seal}: set the same `seal` in both nodes' files"
            )
        carrier = row_sender(ticket, self._buffers)
        transfer = SourceTransfer(ticket, self._fingerprint)
        outbound = Outbound(request_id=request_id, transfer=transfer)
        with self._lock:
            self._live.add(outbound)
        outbound.source = TcpSource(
            transfer,
            num_connections=self._num_connections,
            on_credit=lambda num_bytes: self._credited(outbound, num_bytes),
            on_end=lambda error: self._ended(outbound, error),
            carrier=carrier,
        )
        return outbound

    def put(self, outbound: Outbound, frame: RowFrame) -> None:
        """Hand a frame over; of a transfer that has failed, drop it."""
        assert outbound.source is not None
        with self._lock:
            if outbound.error is not None:
                return
            self.unacknowledged_bytes += frame.rows.nbytes
            outbound.unacknowledged_bytes += frame.rows.nbytes
        outbound.source.put(frame)

    def finish(self, outbound: Outbound, first_tokens: tuple[Token, ...]) -> None:
        """No more frames: say so to the sink once all are sent, and the outcome to the router."""
        assert outbound.source is not None
        with self._lock:
            outbound.is_finished = True
            error = outbound.error
        if error is not None:
            self._results.put(failed(outbound.request_id, error))
        outbound.source.finish(first_tokens)

    def abort(self, outbound: Outbound, reason: str) -> None:
        assert outbound.source is not None
        with self._lock:
            outbound.error = outbound.error or PeerError(reason)  # what is still put is dropped
        outbound.source.abort(reason)
        self._let_go(outbound)

    def cancel(self, request_id: str) -> None:
        """Abort its transfer now, whatever the computing thread is at."""
        with self._lock:
            live = [one for one in self._live if one.request_id == request_id and one.source]
        for outbound in live:
            self.abort(outbound, "cancelled by the router")

    def close(self) -> None:
        with self._lock:
            live = list(self._live)
        for outbound in live:
            self.abort(outbound, "the node is stopping")

    def _credited(self, outbound: Outbound, num_bytes: int) -> None:
        with self._lock:
            self.moved_bytes += num_bytes
            # What was given up is counted no more: nothing of it may be taken off twice.
            known = min(num_bytes, outbound.unacknowledged_bytes)
            self.unacknowledged_bytes -= known
            outbound.unacknowledged_bytes -= known
        self._on_progress()

    def _ended(self, outbound: Outbound, error: PeerError | None) -> None:
        """Tell whoever is there to hear: the computing thread, or after it the router."""
        with self._lock:
            outbound.error = error
            is_finished = outbound.is_finished
        if error is None:
            transfer = outbound.transfer
            self._results.put(
                Sent(
                    request_id=outbound.request_id,
                    kv_bytes=transfer.sent_bytes,
                    wire_s=transfer.wire_s,
                    last_group_s=transfer.last_group_s,
                )
            )
        elif is_finished:
            self._results.put(failed(outbound.request_id, error))
        self._let_go(outbound)

    def _let_go(self, outbound: Outbound) -> None:
        with self._lock:
            self._live.discard(outbound)
            self.unacknowledged_bytes -= outbound.unacknowledged_bytes
            outbound.unacknowledged_bytes = 0
        self._on_progress()
