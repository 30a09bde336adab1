"""Reads prompts one after the other and sends their KV while it computes.

Runs on a thread of its own with its own data links. A frame is handed over as soon as it is packed;
when credit is spent the computing waits, which bounds the packed bytes in memory. The
acknowledgements of a finished prompt are taken in while the next one is read.
"""

import logging
import threading
import time
from dataclasses import dataclass

import zmq

from hetero.errors import HeteroError, PeerError
from hetero.llama.model import Vocab
from hetero.llama.sampler import Sampler, token_logprob
from hetero.messages import (
    Fingerprint,
    FirstTokens,
    Message,
    Prefill,
    Sent,
    Ticket,
    Token,
    failed,
)
from hetero.prefill.engine import PrefillEngine, PrefillRun
from hetero.serve.mailbox import Mailbox
from hetero.transport.transfer import SourceTransfer, State
from hetero.transport.zmq_link import SourceLink

logger = logging.getLogger(__name__)

# Between looks at whether a job that waits for credit was cancelled.
_CANCEL_CHECK_S = 0.05


class Cancelled(HeteroError):
    """The router does not want this job any more."""


@dataclass(kw_only=True)
class _Outbound:
    """A transfer under way, and what its sink had against it."""

    request_id: str
    transfer: SourceTransfer
    link: SourceLink
    error: PeerError | None = None


class PrefillWorker:
    """`submit` and `cancel` from any thread; results come out of `results`."""

    def __init__(
        self,
        engine: PrefillEngine,
        vocab: Vocab,
        fingerprint: Fingerprint,
        context: "zmq.Context[zmq.Socket[bytes]]",
    ) -> None:
        self.results: Mailbox[Message | BaseException] = Mailbox()
        self.num_active = 0
        self.moved_bytes = 0
        self._engine = engine
        self._vocab = vocab
        self._fingerprint = fingerprint
        self._zmq = context
        self._jobs: Mailbox[Prefill | None] = Mailbox()
        self._wanted: set[str] = set()  # requests submitted, not cancelled, not ended
        self._links: dict[str, SourceLink] = {}  # by address
        self._outbound: dict[str, _Outbound] = {}  # by ticket id
        self._thread = threading.Thread(target=self._run, name="prefill", daemon=True)
        self._thread.start()

    @property
    def num_queued(self) -> int:
        return max(0, len(self._wanted) - self.num_active)

    def submit(self, job: Prefill) -> None:
        self._wanted.add(job.request_id)
        self._jobs.put(job)

    def cancel(self, request_id: str) -> None:
        self._wanted.discard(request_id)

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()
        self._jobs.close()
        self.results.close()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # not swallowed: the node raises it from its own thread
            self.results.put(error)
        finally:
            for link in self._links.values():
                link.close()

    def _work(self) -> None:
        waiting: list[Prefill | None] = []
        while True:
            if not waiting:
                self._wait()
            waiting += self._jobs.take_all()
            self._take_acknowledgements()
            if not waiting:
                continue
            job = waiting.pop(0)
            if job is None:
                return
            self.num_active = 1
            self._read(job)
            self._wanted.discard(job.request_id)
            self.num_active = 0

    def _wait(self) -> None:
        """Until a job or an acknowledgement comes."""
        poller = zmq.Poller()
        poller.register(self._jobs, zmq.POLLIN)
        for link in self._links.values():
            poller.register(link.socket, zmq.POLLIN)
        poller.poll()

    def _read(self, job: Prefill) -> None:
        outbound: _Outbound | None = None
        try:
            self._check_wanted(job)
            run = self._engine.start(job.prompt, want_rows=job.ticket is not None)
            if job.ticket is not None:
                outbound = self._open(job.request_id, job.ticket)
            self._read_and_send(job, run, outbound)
        except HeteroError as error:
            if outbound is not None:
                del self._outbound[outbound.transfer.ticket.ticket_id]
                outbound.link.send(outbound.transfer.abort(str(error)))
            logger.log(
                logging.DEBUG if isinstance(error, Cancelled) else logging.WARNING,
                "request %s: %s",
                job.request_id,
                error,
            )
            self.results.put(failed(job.request_id, error))

    def _open(self, request_id: str, ticket: Ticket) -> _Outbound:
        link = self._links.get(ticket.address)
        if link is None:
            link = self._links[ticket.address] = SourceLink(self._zmq, ticket.address)
        transfer = SourceTransfer(ticket, self._fingerprint)
        outbound = _Outbound(request_id=request_id, transfer=transfer, link=link)
        self._outbound[ticket.ticket_id] = outbound
        link.send(transfer.open())
        return outbound

    def _read_and_send(self, job: Prefill, run: PrefillRun, outbound: _Outbound | None) -> None:
        started = time.perf_counter()
        waited_s = 0.0
        chunks = set()
        for frame in run:
            self._check_wanted(job)
            chunks.add(frame.first_token)
            if outbound is not None:
                waited_s += self._await_credit(outbound, frame.rows.nbytes)
                header = outbound.transfer.rows(frame, time.perf_counter())
                outbound.link.send(header, frame.rows)
                self.moved_bytes += frame.rows.nbytes
        self._check_wanted(job)
        tokens = self._draw(job, run)
        self.results.put(
            FirstTokens(
                request_id=job.request_id,
                tokens=tokens,
                prefill_s=time.perf_counter() - started - waited_s - run.pack_s,
                pack_s=run.pack_s,
                num_chunks=len(chunks),
            )
        )
        if outbound is not None:
            outbound.link.send(outbound.transfer.done(tokens))
            self._end_if_acknowledged(outbound)

    def _draw(self, job: Prefill, run: PrefillRun) -> tuple[Token, ...]:
        """The first token of every choice, from the last logits."""
        tokens = []
        num_top = job.sampling.top_logprobs
        for choice in range(job.num_choices):
            sampler = Sampler(self._vocab, job.sampling, choice)
            try:
                token = sampler.sample(run.logits, len(job.prompt))
            finally:
                sampler.close()
            logprob = None if num_top is None else token_logprob(run.logits, token, num_top)
            tokens.append(Token(job.request_id, choice, 0, token, logprob))
        return tuple(tokens)

    def _await_credit(self, outbound: _Outbound, num_bytes: int) -> float:
        """Seconds spent until a frame may go.

        Raises: PeerError when the sink refuses, or is silent for the lease's length.
        """
        transfer = outbound.transfer
        started = time.perf_counter()
        self._take_acknowledgements()
        while not transfer.may_send(num_bytes):
            if outbound.error is not None:
                raise outbound.error
            if outbound.request_id not in self._wanted:
                raise Cancelled("cancelled by the router")
            if time.perf_counter() - started > transfer.ticket.lease_s:
                raise PeerError(
                    f"decode node at {transfer.ticket.address}: need an answer within "
                    f"{transfer.ticket.lease_s:g} s, have none"
                )
            outbound.link.socket.poll(int(1000 * _CANCEL_CHECK_S))
            self._take_acknowledgements()
        return time.perf_counter() - started

    def _take_acknowledgements(self) -> None:
        for link in self._links.values():
            for message in link.receive():
                outbound = self._outbound.get(message.ticket_id)
                if outbound is None:
                    continue  # of a transfer that was aborted here
                is_all_sent = outbound.transfer.state is State.DONE
                try:
                    outbound.transfer.receive(message, time.perf_counter())
                except PeerError as error:
                    outbound.error = error
                    if is_all_sent:  # nobody else is there to raise it
                        del self._outbound[message.ticket_id]
                        self.results.put(failed(outbound.request_id, error))
                    continue
                self._end_if_acknowledged(outbound)

    def _end_if_acknowledged(self, outbound: _Outbound) -> None:
        transfer = outbound.transfer
        if not transfer.is_acknowledged:
            return
        del self._outbound[transfer.ticket.ticket_id]
        self.results.put(
            Sent(
                request_id=outbound.request_id,
                kv_bytes=transfer.sent_bytes,
                wire_s=transfer.wire_s,
                last_group_s=transfer.last_group_s,
            )
        )

    def _check_wanted(self, job: Prefill) -> None:
        if job.request_id not in self._wanted:
            raise Cancelled("cancelled by the router")
