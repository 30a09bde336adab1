"""Reads prompts one after the other on a thread of its own, and hands their rows to the sender."""

import logging
import queue
import threading
import time

import zmq

from hetero.errors import HeteroError
from hetero.llama.model import Vocab
from hetero.llama.sampler import Sampler, token_logprob
from hetero.messages import Fingerprint, FirstTokens, Message, Prefill, Sent, Token, failed
from hetero.prefill.engine import PrefillEngine, PrefillRun
from hetero.serve.mailbox import Mailbox
from hetero.serve.sender import Outbound, Sender

logger = logging.getLogger(__name__)


class Cancelled(HeteroError):
    """The router does not want this job any more."""


class PrefillWorker:
    """`submit` and `cancel` from any thread; what came of the jobs is in `results`."""

    def __init__(
        self,
        engine: PrefillEngine,
        vocab: Vocab,
        fingerprint: Fingerprint,
        context: "zmq.Context[zmq.Socket[bytes]]",
    ) -> None:
        self.results: Mailbox[Message | BaseException] = Mailbox()
        self.num_active = 0
        self._reading_bytes = 0
        self._engine = engine
        self._vocab = vocab
        self._sender = Sender(fingerprint, context, self.results)
        self._jobs: queue.SimpleQueue[Prefill | None] = queue.SimpleQueue()
        self._wanted: set[str] = set()  # requests submitted, not cancelled, not read
        self._thread = threading.Thread(target=self._run, name="prefill", daemon=True)
        self._thread.start()

    @property
    def num_queued(self) -> int:
        return max(0, len(self._wanted) - self.num_active)

    @property
    def kv_bytes_held(self) -> int:
        """The cache of the prompt being read, counted as packed, and rows not acknowledged yet."""
        return self._reading_bytes + self._sender.unacknowledged_bytes

    @property
    def moved_bytes(self) -> int:
        return self._sender.moved_bytes

    def submit(self, job: Prefill) -> None:
        self._wanted.add(job.request_id)
        self._jobs.put(job)

    def cancel(self, request_id: str) -> None:
        self._wanted.discard(request_id)

    def close(self) -> None:
        self._wanted.clear()
        self._jobs.put(None)
        self._thread.join()
        self._sender.close()
        self.results.close()

    def _run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                self.num_active = 1
                self._reading_bytes = len(job.prompt) * self._engine.layout.token_bytes
                self._read(job)
                self._wanted.discard(job.request_id)
                self.num_active = self._reading_bytes = 0
        except BaseException as error:  # not swallowed: the node raises it from its own thread
            self.results.put(error)

    def _read(self, job: Prefill) -> None:
        outbound: Outbound | None = None
        try:
            self._check_wanted(job)
            run = self._engine.start(job.prompt, want_rows=job.ticket is not None)
            if job.ticket is not None:
                outbound = self._sender.open(job.request_id, job.ticket)
            self._read_and_send(job, run, outbound)
        except HeteroError as error:
            if outbound is not None:
                self._sender.abort(outbound, str(error))
            if not isinstance(error, Cancelled):
                logger.warning("request %s: %s", job.request_id, error)
            self.results.put(failed(job.request_id, error))

    def _read_and_send(self, job: Prefill, run: PrefillRun, outbound: Outbound | None) -> None:
        started = time.perf_counter()
        blocked_s = 0.0
        chunk_bytes = self._engine.chunk_tokens * self._engine.layout.token_bytes
        for frame in run:
            self._check_wanted(job)
            if outbound is not None:
                blocked_s += self._sender.put(
                    outbound, frame, chunk_bytes, lambda: self._check_wanted(job)
                )
        self._check_wanted(job)
        tokens = self._draw(job, run)
        self.results.put(
            FirstTokens(
                request_id=job.request_id,
                tokens=tokens,
                prefill_s=time.perf_counter() - started - blocked_s - run.pack_s,
                pack_s=run.pack_s,
                num_chunks=-(-len(job.prompt) // self._engine.chunk_tokens),
            )
        )
        if outbound is not None:
            self._sender.finish(outbound, tokens)
        else:
            nothing = Sent(request_id=job.request_id, kv_bytes=0, wire_s=0.0, last_group_s=0.0)
            self.results.put(nothing)

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

    def _check_wanted(self, job: Prefill) -> None:
        if job.request_id not in self._wanted:
            raise Cancelled("cancelled by the router")
