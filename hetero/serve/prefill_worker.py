"""Reads prompts on a thread of its own, several at a time where the engine can, and hands their
rows to the sender."""

import logging
import queue
import threading
import time
from dataclasses import dataclass

from hetero.errors import HeteroError
from hetero.kv.rows import RowFrame
from hetero.llama.model import Vocab
from hetero.llama.sampler import Sampler, token_logprob
from hetero.messages import (
    Fingerprint,
    FirstTokens,
    Message,
    Prefill,
    SealName,
    Sent,
    Token,
    failed,
)
from hetero.prefill.engine import PrefillEngine, PrefillRun, Slice
from hetero.serve.prompt_queue import PromptQueue, Share
from hetero.serve.sender import Outbound, Sender
from hetero.transport.mailbox import Mailbox
from hetero.transport.nixl_source import SendBuffers

logger = logging.getLogger(__name__)

# Rows not acknowledged yet, in chunks, of one prompt and of all: a prompt with as much waits. One
# that has none waiting is read on in any case, whatever the others' links do.
_BACKLOG_CHUNKS = 1
_TOTAL_BACKLOG_CHUNKS = 4


class Cancelled(HeteroError):
    """The router does not want this job any more."""


@dataclass(eq=False)
class Reading:
    """A job, and once it is admitted its run and its transfer."""

    job: Prefill
    run: PrefillRun | None = None
    outbound: Outbound | None = None
    step_s: float = 0.0  # of the steps it took part in

    @property
    def num_tokens(self) -> int:
        return len(self.job.prompt)

    @property
    def num_unread(self) -> int:
        return self.num_tokens if self.run is None else self.run.num_unread


class PrefillWorker:
    """`submit` and `cancel` from any thread; what came of the jobs is in `results`."""

    def __init__(
        self,
        engine: PrefillEngine,
        vocab: Vocab,
        fingerprint: Fingerprint,
        *,
        weakest_seal: SealName = "aead",
        num_connections: int | None = None,
        buffers: SendBuffers | None = None,
    ) -> None:
        self.results: Mailbox[Message | BaseException] = Mailbox()
        self.num_active = 0
        self._reading_bytes = 0
        self._engine = engine
        self._vocab = vocab
        # A job; None: something changed, look again.
        self._wake: queue.SimpleQueue[Prefill | None] = queue.SimpleQueue()
        self._sender = Sender(
            fingerprint,
            self.results,
            lambda: self._wake.put(None),
            weakest_seal=weakest_seal,
            num_connections=num_connections,
            buffers=buffers,
        )
        self._queue: PromptQueue[Reading] = PromptQueue(engine.chunk_tokens)
        self._chunk_bytes = engine.chunk_tokens * engine.layout.token_bytes
        self._wanted: set[str] = set()  # requests submitted, not cancelled, not read
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="prefill", daemon=True)
        self._thread.start()

    @property
    def num_queued(self) -> int:
        return max(0, len(self._wanted) - self.num_active)

    @property
    def kv_bytes_held(self) -> int:
        """The cache of the prompts being read, counted as packed, and rows not acknowledged yet."""
        return self._reading_bytes + self._sender.unacknowledged_bytes

    @property
    def moved_bytes(self) -> int:
        return self._sender.moved_bytes

    def submit(self, job: Prefill) -> None:
        self._wanted.add(job.request_id)
        self._wake.put(job)

    def cancel(self, request_id: str) -> None:
        self._wanted.discard(request_id)
        self._sender.cancel(request_id)
        self._wake.put(None)

    def close(self) -> None:
        self._stopped = True
        self._wanted.clear()
        self._wake.put(None)
        self._thread.join()
        self._sender.close()
        self.results.close()

    def _run(self) -> None:
        """Until closed: take in what came, admit, read a step of what can go on; else wait."""
        try:
            is_idle = True
            while not self._stopped:
                self._take_in(wait=is_idle)
                self._drop_unwanted()
                self._queue.admit(self._engine.has_room, self._start)
                shares = self._queue.next_step(self._can_go_on)
                is_idle = not shares
                if shares:
                    self._step(shares)
            for reading in list(self._queue.reading):
                self._fail(reading, Cancelled("the node is stopping"))
        except BaseException as error:  # not swallowed: the node raises it from its own thread
            self.results.put(error)

    def _take_in(self, *, wait: bool) -> None:
        """Jobs that came; if there is nothing to do, wait for one or for a change."""
        if wait:
            self._push(self._wake.get())
        while not self._wake.empty():
            self._push(self._wake.get())

    def _push(self, job: Prefill | None) -> None:
        if job is None:
            return
        reading = Reading(job)
        if reading.num_tokens > self._engine.max_prompt_tokens:
            self._start(reading)  # to be refused now: there will never be room
        else:
            self._queue.push(reading)

    def _drop_unwanted(self) -> None:
        """Cancelled ones, and those whose transfer has failed."""
        for reading in list(self._queue):
            if not self._is_wanted(reading):
                self._fail(reading, Cancelled("cancelled by the router"))
            elif reading.outbound is not None and reading.outbound.error is not None:
                self._fail(reading, reading.outbound.error)

    def _start(self, reading: Reading) -> None:
        job = reading.job
        try:
            reading.run = self._engine.start(job.prompt, want_rows=job.ticket is not None)
            if job.ticket is not None:
                reading.outbound = self._sender.open(job.request_id, job.ticket)
        except HeteroError as error:
            self._fail(reading, error)
        self._count()

    def _can_go_on(self, reading: Reading) -> bool:
        if reading.outbound is None:
            return True
        return reading.outbound.unacknowledged_bytes == 0 or (
            reading.outbound.unacknowledged_bytes < _BACKLOG_CHUNKS * self._chunk_bytes
            and self._sender.unacknowledged_bytes < _TOTAL_BACKLOG_CHUNKS * self._chunk_bytes
        )

    def _step(self, shares: list[Share[Reading]]) -> None:
        by_run: dict[PrefillRun, Reading] = {}
        slices = []
        for share in shares:
            run = share.prompt.run
            assert run is not None, "a share of a prompt that was not admitted"
            by_run[run] = share.prompt
            slices.append(Slice(run, share.num_tokens))
        started = time.perf_counter()
        try:
            for run, frame in self._engine.read(slices):
                self._hand_over(by_run[run], frame)
                if not any(self._is_wanted(reading) for reading in by_run.values()):
                    break  # they are dropped before the next step
        except HeteroError as error:
            for run in by_run:
                run.error = error
        seconds = time.perf_counter() - started
        for run, reading in by_run.items():
            reading.step_s += seconds
            if run.error is not None:
                self._fail(reading, run.error)
            elif not run.num_unread and self._is_wanted(reading):
                self._finish(reading, run)

    def _hand_over(self, reading: Reading, frame: RowFrame) -> None:
        if reading.outbound is not None and self._is_wanted(reading):
            self._sender.put(reading.outbound, frame)

    def _finish(self, reading: Reading, run: PrefillRun) -> None:
        job = reading.job
        try:
            tokens = self._draw(job, run)
        except HeteroError as error:
            self._fail(reading, error)
            return
        self.results.put(
            FirstTokens(
                request_id=job.request_id,
                tokens=tokens,
                prefill_s=reading.step_s - run.pack_s,
                pack_s=run.pack_s,
                num_chunks=run.num_chunks,
            )
        )
        if reading.outbound is not None:
            self._sender.finish(reading.outbound, tokens)
            if not self._is_wanted(reading):  # cancelled just now, and missed by it
                self._sender.abort(reading.outbound, "cancelled by the router")
        else:
            nothing = Sent(request_id=job.request_id, kv_bytes=0, wire_s=0.0, last_group_s=0.0)
            self.results.put(nothing)
        self._forget(reading)

    def _fail(self, reading: Reading, error: HeteroError) -> None:
        """Tell the sink and the router; the others are read on."""
        request_id = reading.job.request_id
        if reading.outbound is not None:
            self._sender.abort(reading.outbound, str(error))
        if not isinstance(error, Cancelled):
            logger.warning("request %s: %s", request_id, error)
        self.results.put(failed(request_id, error))
        self._forget(reading)

    def _forget(self, reading: Reading) -> None:
        if reading.run is not None:
            self._engine.end(reading.run)
        self._queue.remove(reading)
        self._wanted.discard(reading.job.request_id)
        self._count()

    def _count(self) -> None:
        reading = self._queue.reading
        self.num_active = len(reading)
        token_bytes = self._engine.layout.token_bytes
        self._reading_bytes = sum(one.num_tokens for one in reading) * token_bytes

    def _is_wanted(self, reading: Reading) -> bool:
        return reading.job.request_id in self._wanted

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
