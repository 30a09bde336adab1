"""Sends packed rows on a thread of its own, so that credit and acknowledgements never wait for
the computing, and their times are true.

The computing thread hands frames over and never blocks here: before each step it asks which
requests may have rows at all, and `on_progress` tells it that the answer may have changed.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import zmq

from hetero.errors import PeerError
from hetero.kv.rows import RowFrame
from hetero.messages import Fingerprint, Message, Sent, Ticket, Token, ToSource, failed
from hetero.serve.mailbox import Mailbox
from hetero.transport.transfer import SourceTransfer, State
from hetero.transport.zmq_link import SourceLink

logger = logging.getLogger(__name__)

# Between looks for transfers whose sink has fallen silent, and jobs cancelled while they wait.
_CHECK_S = 0.5


@dataclass(eq=False, kw_only=True)
class Outbound:
    """One transfer. Its fields belong to the sending thread; `error` is read by both."""

    request_id: str
    transfer: SourceTransfer
    link: SourceLink | None = None
    waiting: deque[tuple[RowFrame, float]] = field(default_factory=deque)  # frame, handed over at
    unacknowledged_bytes: int = 0  # handed over, under the sender's lock
    first_tokens: tuple[Token, ...] | None = None  # set when every frame is handed over
    error: PeerError | None = None
    heard_at: float = field(default_factory=time.monotonic)


class Sender:
    """All transfers of a prefill node. Results (`Sent`, `Failed`) go to the node's mailbox."""

    def __init__(
        self,
        fingerprint: Fingerprint,
        context: "zmq.Context[zmq.Socket[bytes]]",
        results: "Mailbox[Message | BaseException]",
        on_progress: Callable[[], None],
    ) -> None:
        """`on_progress` is called on the sending thread when rows are acknowledged or given up."""
        self.moved_bytes = 0
        self.unacknowledged_bytes = 0  # of all transfers
        self._counts = threading.Lock()
        self._on_progress = on_progress
        self._fingerprint = fingerprint
        self._zmq = context
        self._results = results
        self._commands: Mailbox[Callable[[], None]] = Mailbox()
        self._links: dict[str, SourceLink] = {}  # by address
        self._outbound: dict[str, Outbound] = {}  # by ticket id
        self._poller = zmq.Poller()
        self._poller.register(self._commands, zmq.POLLIN)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def open(self, request_id: str, ticket: Ticket) -> Outbound:
        outbound = Outbound(
            request_id=request_id, transfer=SourceTransfer(ticket, self._fingerprint)
        )
        self._commands.put(lambda: self._open(outbound))
        return outbound

    def put(self, outbound: Outbound, frame: RowFrame) -> None:
        """Hand a frame over; of a transfer that has failed, drop it."""
        with self._counts:
            if outbound.error is not None:
                return
            self.unacknowledged_bytes += frame.rows.nbytes
            outbound.unacknowledged_bytes += frame.rows.nbytes
        handed_over = time.perf_counter()

        def command() -> None:
            outbound.waiting.append((frame, handed_over))
            self._pump(outbound)

        self._commands.put(command)

    def finish(self, outbound: Outbound, first_tokens: tuple[Token, ...]) -> None:
        """No more frames: say so to the sink once all are sent, and the outcome to the router."""

        def command() -> None:
            outbound.first_tokens = first_tokens
            if outbound.error is not None:
                self._results.put(failed(outbound.request_id, outbound.error))
            self._pump(outbound)

        self._commands.put(command)

    def abort(self, outbound: Outbound, reason: str) -> None:
        def command() -> None:
            if self._outbound.pop(outbound.transfer.ticket.ticket_id, None) and outbound.link:
                outbound.link.send(outbound.transfer.abort(reason))
            self._acknowledge(outbound, outbound.unacknowledged_bytes)

        self._commands.put(command)

    def close(self) -> None:
        def command() -> None:
            self._stopped = True

        self._commands.put(command)
        self._thread.join()
        self._commands.close()

    def _run(self) -> None:
        try:
            while not self._stopped:
                self._poller.poll(int(1000 * _CHECK_S))
                for command in self._commands.take_all():
                    command()
                for link in self._links.values():
                    for message in link.receive():
                        self._hear(message)
                self._give_up_silent()
        except BaseException as error:  # not swallowed: the node raises it from its own thread
            self._results.put(error)
        finally:
            for link in self._links.values():
                link.close()

    def _open(self, outbound: Outbound) -> None:
        ticket = outbound.transfer.ticket
        if ticket.address not in self._links:
            link = self._links[ticket.address] = SourceLink(self._zmq, ticket.address)
            self._poller.register(link.socket, zmq.POLLIN)
        outbound.link = self._links[ticket.address]
        self._outbound[ticket.ticket_id] = outbound
        outbound.link.send(outbound.transfer.open())

    def _hear(self, message: ToSource) -> None:
        outbound = self._outbound.get(message.ticket_id)
        if outbound is None:
            return  # of a transfer that was aborted here
        outbound.heard_at = time.monotonic()
        in_flight_bytes = outbound.transfer.in_flight_bytes
        try:
            outbound.transfer.receive(message, time.perf_counter())
        except PeerError as error:
            self._fail(outbound, error)
            return
        self._acknowledge(outbound, in_flight_bytes - outbound.transfer.in_flight_bytes)
        self._pump(outbound)

    def _acknowledge(self, outbound: Outbound, num_bytes: int) -> None:
        with self._counts:
            self.unacknowledged_bytes -= num_bytes
            outbound.unacknowledged_bytes -= num_bytes
        self._on_progress()

    def _pump(self, outbound: Outbound) -> None:
        """Send what credit allows; after the last frame say Done, after its credit report."""
        transfer = outbound.transfer
        if outbound.link is None or transfer.ticket.ticket_id not in self._outbound:
            return
        while outbound.waiting and transfer.may_send(outbound.waiting[0][0].rows.nbytes):
            frame, handed_over = outbound.waiting.popleft()
            header = transfer.rows(frame, handed_over=handed_over, now=time.perf_counter())
            outbound.link.send(header, frame.rows)
            self.moved_bytes += frame.rows.nbytes
        if outbound.waiting or outbound.first_tokens is None:
            return
        if transfer.state is State.MOVING:
            outbound.link.send(transfer.done(outbound.first_tokens))
        if transfer.is_acknowledged:
            del self._outbound[transfer.ticket.ticket_id]
            self._results.put(
                Sent(
                    request_id=outbound.request_id,
                    kv_bytes=transfer.sent_bytes,
                    wire_s=transfer.wire_s,
                    last_group_s=transfer.last_group_s,
                )
            )

    def _give_up_silent(self) -> None:
        """A sink owes an answer while a transfer opens and while frames are in flight."""
        now = time.monotonic()
        for outbound in list(self._outbound.values()):
            ticket = outbound.transfer.ticket
            if not outbound.transfer.awaits_answer:
                outbound.heard_at = now
            elif now - outbound.heard_at > ticket.lease_s:
                late = f"need an answer within {ticket.lease_s:g} s, have none"
                self._fail(outbound, PeerError(f"decode node at {ticket.address}: {late}"))
                self._forget_link(ticket.address)

    def _forget_link(self, address: str) -> None:
        """A node that comes back elsewhere must not leave a socket that redials for ever."""
        if not any(o.transfer.ticket.address == address for o in self._outbound.values()):
            link = self._links.pop(address)
            self._poller.unregister(link.socket)
            link.close()

    def _fail(self, outbound: Outbound, error: PeerError) -> None:
        """Tell whoever is there to hear: the computing thread, or after it the router."""
        del self._outbound[outbound.transfer.ticket.ticket_id]
        outbound.waiting.clear()
        with self._counts:
            outbound.error = error
        self._acknowledge(outbound, outbound.unacknowledged_bytes)
        if outbound.first_tokens is not None:
            self._results.put(failed(outbound.request_id, error))
