"""The decode node: KV comes in on the sink's threads while the engine steps on another.

This thread talks to the router, gives out tickets, and hears what becomes of transfers. A staging
blob is the sink's until it is complete, then the engine thread's.
"""

import logging
import secrets
import time
import uuid
from dataclasses import dataclass

import zmq

from hetero.decode.engine import Admitted, Event
from hetero.decode.sequence import Job
from hetero.errors import EngineError, HeteroError, PeerError
from hetero.kv.blob_memory import BlobMemory
from hetero.kv.staging import StagingBlob, StateLayout
from hetero.messages import (
    Cancel,
    Failed,
    Finished,
    Generate,
    Message,
    NodeInfo,
    NodeLoad,
    Renew,
    Reserve,
    Reserved,
    Ticket,
    ToNode,
    failed,
)
from hetero.serve.control import ControlLink
from hetero.serve.engine_thread import EngineThread
from hetero.serve.leases import Leases
from hetero.transport.control_socket import RouterContact
from hetero.transport.seals import KEY_BYTES
from hetero.transport.tcp_sink import Arrived, Broke, TcpSink
from hetero.transport.transfer import SinkTransfer

logger = logging.getLogger(__name__)

# What was a staging blob is given back to the system when no other was needed for so long.
_MEMORY_IDLE_S = 10.0


@dataclass(frozen=True)
class _Inbound:
    """A ticket that is out."""

    request_id: str
    transfer: SinkTransfer


class DecodeNode:
    """Runs until `stop`, or until its engine breaks."""

    def __init__(
        self,
        engine: EngineThread,
        info: NodeInfo,
        *,
        router: RouterContact,
        sink: TcpSink,
        context: "zmq.Context[zmq.Socket[bytes]]",
        credit_bytes: int,
    ) -> None:
        self._engine = engine
        self._info = info
        self._sink = sink
        self._credit_bytes = credit_bytes
        longest = StateLayout(info.fingerprint.layout, info.context_tokens, engine.num_streams)
        self._memory = BlobMemory(longest.num_bytes)
        self._inbound: dict[str, _Inbound] = {}  # by ticket id
        self._leases = Leases()
        self._choices_left: dict[str, int] = {}
        self._kv_moved_bytes = 0
        self._control = ControlLink(context, router, info, self.load)
        self._stopped = False

    def load(self) -> NodeLoad:
        staged = sum(inbound.transfer.staging.num_bytes for inbound in self._inbound.values())
        return NodeLoad(
            active=self._engine.num_active,
            queued=self._engine.num_queued,
            kv_bytes_held=staged + self._engine.kv_bytes_held,
            kv_moved_bytes=self._kv_moved_bytes + self._arriving_bytes(),
        )

    def stop(self) -> None:
        self._stopped = True

    def run(self) -> None:
        poller = zmq.Poller()
        for source in (self._control.socket, self._sink.events, self._engine.events):
            poller.register(source, zmq.POLLIN)
        while not self._stopped:
            poller.poll(int(1000 * self._control.beat()))
            for message in self._control.receive():
                self._obey(message)
            for outcome in self._sink.events.take_all():
                self._take(outcome)
            for event in self._engine.take_events():
                self._tell(event)
            self._give_up_expired()
            self._memory.rest(_MEMORY_IDLE_S)
        self._control.close()
        self._sink.close()

    def _obey(self, message: ToNode) -> None:
        match message:
            case Reserve() | Generate():
                self._leases.start(message.request_id, time.monotonic())
                self._choices_left[message.request_id] = message.num_choices
                self._engine.submit(_job(message))
            case Cancel():
                self._forget(message.request_id, "cancelled by the router")
            case Renew():
                for unknown in self._leases.renew(message.request_ids, time.monotonic()):
                    self._control.send(failed(unknown, PeerError("the node has forgotten it")))
            case _:
                logger.warning("need no %s on a decode node, have one", type(message).__name__)

    def _take(self, outcome: Arrived | Broke) -> None:
        inbound = self._inbound.get(outcome.ticket_id)
        if inbound is None:
            return  # dropped here while it was being told
        match outcome:
            case Arrived():
                self._no_more(outcome.ticket_id)
                transfer = inbound.transfer
                self._engine.join(
                    inbound.request_id, transfer.staging.take(), transfer.first_tokens
                )
            case Broke():
                logger.warning("request %s: %s", inbound.request_id, outcome.error)
                self._fail(inbound.request_id, outcome.error)

    def _no_more(self, ticket_id: str) -> None:
        self._kv_moved_bytes += self._inbound.pop(ticket_id).transfer.received_bytes

    def _arriving_bytes(self) -> int:
        return sum(inbound.transfer.received_bytes for inbound in self._inbound.values())

    def _tell(self, event: Event) -> None:
        match event:
            case Admitted(job=job):
                self._control.send(self._reserve(job))
            case Failed():
                self._drop_inbound(event.request_id, event.message)
                self._end(event.request_id)
                self._control.send(event)
            case Finished() if event.request_id in self._choices_left:
                self._control.send(event)
                self._choices_left[event.request_id] -= 1
                if self._choices_left[event.request_id] == 0:
                    self._end(event.request_id)
            case Message():
                self._control.send(event)

    def _reserve(self, job: Job) -> Message:
        ticket = Ticket(
            # Never reused, so that a late writer can't reach another request's rows.
            ticket_id=f"{job.request_id}.{uuid.uuid4().hex[:12]}",
            address=self._sink.address,
            num_tokens=job.num_prompt_tokens,
            lease_s=self._leases.lease_s,
            key=secrets.token_bytes(KEY_BYTES),
            seal=self._info.seal,
            ring=self._sink.ring,
        )
        if job.request_id not in self._leases:  # cancelled while it was being admitted
            self._engine.cancel(job.request_id)
            return failed(job.request_id, EngineError("cancelled before it was admitted"))
        try:
            staging = StagingBlob(
                self._info.fingerprint.layout,
                job.num_prompt_tokens,
                self._engine.num_streams,
                self._memory,
            )
        except MemoryError:
            self._engine.cancel(job.request_id)
            self._end(job.request_id)
            need = job.num_prompt_tokens * self._info.fingerprint.layout.token_bytes
            return failed(job.request_id, EngineError(f"staging: need {need} bytes, have fewer"))
        transfer = SinkTransfer(ticket, self._info.fingerprint, staging, self._credit_bytes)
        self._inbound[ticket.ticket_id] = _Inbound(job.request_id, transfer)
        self._sink.expect(transfer)
        return Reserved(request_id=job.request_id, ticket=ticket)

    def _give_up_expired(self) -> None:
        for request_id in self._leases.expired(time.monotonic()):
            lease_s = self._leases.lease_s
            self._fail(
                request_id, PeerError(f"router: need a renewal every {lease_s:g} s, have none")
            )

    def _fail(self, request_id: str, error: HeteroError) -> None:
        self._forget(request_id, str(error))
        self._control.send(failed(request_id, error))

    def _forget(self, request_id: str, reason: str) -> None:
        """Free everything of a request here, and tell its source to stop."""
        self._drop_inbound(request_id, reason)
        self._end(request_id)
        self._engine.cancel(request_id)

    def _drop_inbound(self, request_id: str, reason: str) -> None:
        for ticket_id, inbound in list(self._inbound.items()):
            if inbound.request_id == request_id:
                self._no_more(ticket_id)
                self._sink.forget(ticket_id, reason)

    def _end(self, request_id: str) -> None:
        self._leases.end(request_id)
        self._choices_left.pop(request_id, None)


def _job(message: Reserve | Generate) -> Job:
    prompt = message.prompt if isinstance(message, Generate) else None
    num_prompt_tokens = (
        len(message.prompt) if isinstance(message, Generate) else message.num_prompt_tokens
    )
    return Job(
        request_id=message.request_id,
        num_prompt_tokens=num_prompt_tokens,
        max_tokens=message.max_tokens,
        num_choices=message.num_choices,
        sampling=message.sampling,
        prompt=prompt,
    )
