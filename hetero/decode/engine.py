"""Continuous batching over one llama.cpp context: sequences join and leave between steps.

Single-threaded: `submit`, `join`, `cancel` and `step` are called from one thread. A step restores
at most one arrived state, reads at most one chunk of a local prompt, and decodes one token for
every running sequence; its three parts can be called apart, to hear of each at once. What happened
comes back as messages for the router.
"""

import logging
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from hetero.decode.chunk_share import ChunkShare
from hetero.decode.running import RunningBatch
from hetero.decode.sequence import NO_SLOT, Job, Sequence
from hetero.decode.slots import Slots
from hetero.errors import EngineError, HeteroError, PeerError, PlanError
from hetero.kv.layout import KVLayout
from hetero.kv.probe import probe_state_format
from hetero.kv.types import kv_type
from hetero.llama.batch import Batch
from hetero.llama.context import Context, ContextConfig
from hetero.llama.load_mode import LoadMode
from hetero.llama.model import Model
from hetero.llama.sampler import Sampler
from hetero.messages import Finished, Generated, Joined, Message, Token, failed

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """unified: one pool of cells for all sequences instead of a stream each (see ContextConfig).

    prefill_share: of the time, for local prompts while sequences run; more where many wait.
    """

    num_slots: int
    context_tokens: int
    num_threads: int
    unified: bool = False
    chunk_tokens: int = 512
    prefill_share: float = 0.9
    gpu_layers: int = 0
    load: LoadMode = "read"


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """A job without a prompt now holds its slots: its KV may come."""

    job: Job


Event = Message | Admitted


@dataclass(kw_only=True)
class _Prompt:
    """A prompt this node reads itself, chunk by chunk between decode steps."""

    job: Job
    sequences: list[Sequence]
    tokens: tuple[int, ...]
    slot: int | None = None  # from its first chunk on
    num_read: int = 0
    seconds: float = 0.0


@dataclass(kw_only=True)
class _Arrival:
    """A choice whose prompt's state is there and waits for its restore."""

    sequence: Sequence
    blob: npt.NDArray[np.uint8]
    first_token: int
    prefill_s: float


class DecodeEngine:
    """One model, one context, up to `num_slots` sequences at once."""

    def __init__(self, path: Path, layout: KVLayout, config: DecodeConfig) -> None:
        self.config = config
        self.layout = layout
        self.model = Model(path, gpu_layers=config.gpu_layers, load=config.load)
        self.context = Context(
            self.model,
            ContextConfig(
                num_sequences=config.num_slots,
                tokens_per_sequence=config.context_tokens,
                unified=config.unified,
                k_ggml_type=kv_type(layout.k_type).ggml_id,
                v_ggml_type=kv_type(layout.v_type).ggml_id,
                num_threads=config.num_threads,
                batch_tokens=max(config.chunk_tokens, config.num_slots),
            ),
        )
        probe_state_format(self.model, self.context, layout)
        self._slots = Slots(config.num_slots)
        self._running = RunningBatch(self.context, self._slots, layout.token_bytes)
        self._chunk = Batch(config.chunk_tokens)
        self._share = ChunkShare(config.prefill_share, config.chunk_tokens)
        self._waiting: deque[tuple[Job, list[Sequence]]] = deque()
        self._expected: dict[str, list[Sequence]] = {}
        self._prompts: deque[_Prompt] = deque()
        self._arrivals: deque[_Arrival] = deque()

    def close(self) -> None:
        self.context.close()
        self.model.close()

    @property
    def num_active(self) -> int:
        return len(self._running) + len(self._prompts) + len(self._arrivals) + len(self._expected)

    @property
    def num_queued(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether a `step` would do anything."""
        return bool(self._running.sequences or self._prompts or self._arrivals) or self._can_admit

    @property
    def kv_bytes_held(self) -> int:
        """Cells that sequences occupy, and states that wait for their restore."""
        cells = self._running.num_cells + sum(prompt.num_read for prompt in self._prompts)
        blobs = {id(arrival.blob): arrival.blob.nbytes for arrival in self._arrivals}
        return cells * self.layout.token_bytes + sum(blobs.values())

    def prepare(self, job: Job) -> list[Sequence]:
        """A job's choices, for `submit`. From any thread: compiling a grammar takes a while.

        Raises: PlanError if it can never fit, EngineError for a grammar that does not parse.
        """
        need, have = job.num_prompt_tokens + job.max_tokens, self.context.tokens_per_sequence
        if need > have:
            raise PlanError(
                f"request: need {need} tokens of context ({job.num_prompt_tokens} of the prompt "
                f"and {job.max_tokens} to generate), have {have}"
            )
        if job.num_choices > self.config.num_slots:
            raise PlanError(
                f"request: need {job.num_choices} slots, one per choice, "
                f"have {self.config.num_slots}"
            )
        return [
            Sequence(
                job=job, choice=choice, sampler=Sampler(self.model.vocab, job.sampling, choice)
            )
            for choice in range(job.num_choices)
        ]

    def submit(self, job: Job, sequences: list[Sequence] | None = None) -> None:
        """Queue a job with the choices that `prepare` made of it, first come first served."""
        self._waiting.append((job, self.prepare(job) if sequences is None else sequences))

    def join(
        self, request_id: str, blob: npt.NDArray[np.uint8], tokens: tuple[Token, ...]
    ) -> list[Event]:
        """Give an admitted job its prompt's state and first tokens; `step` restores it.

        Raises: EngineError if no such job waits, PeerError if the tokens are not its own.
        """
        if request_id not in self._expected:
            raise EngineError(f"request {request_id}: need an admitted job, have none")
        sequences = self._expected.pop(request_id)
        expected = [(request_id, choice, 0) for choice in range(len(sequences))]
        have = [(token.request_id, token.choice, token.index) for token in tokens]
        num_known = self.model.vocab.num_tokens
        if have != expected or not all(0 <= token.token < num_known for token in tokens):
            self._drop(sequences)
            raise PeerError(
                f"request {request_id}: need its first token for each of {len(sequences)} choices, "
                f"below {num_known}, have {tokens}"
            )
        for sequence, token in zip(sequences, tokens, strict=True):
            try:
                sequence.sampler.accept(token.token)
            except HeteroError:
                self._drop(sequences)
                raise
            sequence.num_generated = 1
        return self._begin(sequences, tokens, blob, prefill_s=0.0)

    def cancel(self, request_id: str) -> None:
        """Free whatever a request holds, wherever it is; unknown ids are fine."""
        for waiting in [w for w in self._waiting if w[0].request_id == request_id]:
            self._waiting.remove(waiting)
            for sequence in waiting[1]:
                sequence.sampler.close()
        self._drop(self._expected.pop(request_id, []))
        for prompt in [p for p in self._prompts if p.job.request_id == request_id]:
            self._stop_reading(prompt)
            self._drop(prompt.sequences)
        for arrival in [a for a in self._arrivals if a.sequence.job.request_id == request_id]:
            self._arrivals.remove(arrival)
            self._drop([arrival.sequence])
        for sequence in list(self._running.sequences.values()):
            if sequence.job.request_id == request_id:
                self._running.leave(sequence)

    def step(self) -> list[Event]:
        """One restore, one chunk, one token each, where there is work for it."""
        return [*self.take_in(), *self.read_chunk(), *self.decode()]

    def take_in(self) -> list[Event]:
        """Admit what fits, and restore one arrived state: short, and others wait to hear of it."""
        events = self._admit()
        if self._arrivals:
            events += self._restore(self._arrivals.popleft())
        return events

    def read_chunk(self) -> list[Event]:
        """Read one chunk of the oldest local prompt, if there is one and it is its turn."""
        return self._read(self._prompts[0]) if self._prompts else []

    def decode(self) -> list[Event]:
        """One token for every running sequence."""
        return self._decode() if self._running.sequences else []

    @property
    def _can_admit(self) -> bool:
        return bool(self._waiting) and self._waiting[0][0].num_choices <= self._slots.num_unpromised

    def _admit(self) -> list[Event]:
        events: list[Event] = []
        while self._can_admit:
            job, sequences = self._waiting.popleft()
            self._slots.promise(job.num_choices)
            if job.prompt is None:
                self._expected[job.request_id] = sequences
                events.append(Admitted(job=job))
            else:
                self._prompts.append(_Prompt(job=job, sequences=sequences, tokens=job.prompt))
        return events

    def _read(self, prompt: _Prompt) -> list[Event]:
        try:
            return self._read_chunk(prompt)
        except HeteroError as error:
            return self._give_up(prompt.job, error)

    def _read_chunk(self, prompt: _Prompt) -> list[Event]:
        num_tokens = self._share.next_tokens(
            len(self._prompts), len(self._running), self._running.step_s
        )
        if not num_tokens:
            return []
        if prompt.slot is None:
            # Beside running sequences a half-read prompt goes to the top, out of their way.
            prompt.slot = self._slots.take_highest() if self._running else self._slots.take()
            self._running.plan_rows()
        chunk = prompt.tokens[prompt.num_read : prompt.num_read + num_tokens]
        is_last = prompt.num_read + len(chunk) == len(prompt.tokens)
        self._chunk.set_prompt(chunk, prompt.num_read, prompt.slot, want_last=is_last)
        started = time.perf_counter()
        self.context.decode(self._chunk)
        seconds = time.perf_counter() - started
        self._share.has_read(len(chunk), seconds)
        prompt.seconds += seconds
        prompt.num_read += len(chunk)
        if not is_last:
            return []
        logits = self.context.logits(1)[0]
        return self._begin_read(prompt, [s.draw(logits) for s in prompt.sequences])

    def _begin_read(self, prompt: _Prompt, tokens: list[Token]) -> list[Event]:
        """Let the choices of a prompt that was read here go on: a single one where it is, if no
        lower slot is free; several, or one too high up, by restores like any other arrival."""
        lowest = self._slots.lowest_free
        assert prompt.slot is not None
        if len(prompt.sequences) == 1 and (lowest is None or prompt.slot < lowest):
            [sequence], [token] = prompt.sequences, tokens
            events, goes_on = self._first_token(sequence, token)
            if not goes_on:
                self._stop_reading(prompt)
                self._drop([sequence])
                return events
            self._prompts.remove(prompt)
            self._running.join(sequence, prompt.slot, token.token)
            return [*events, _joined(prompt.job, prefill_s=prompt.seconds, restore_s=0.0)]
        blob = self.context.export_sequence(prompt.slot)
        self._stop_reading(prompt)
        return self._begin(prompt.sequences, tokens, blob, prompt.seconds)

    def _begin(
        self,
        sequences: list[Sequence],
        tokens: tuple[Token, ...] | list[Token],
        blob: npt.NDArray[np.uint8],
        prefill_s: float,
    ) -> list[Event]:
        events: list[Event] = []
        for sequence, token in zip(sequences, tokens, strict=True):
            told, goes_on = self._first_token(sequence, token)
            events += told
            if goes_on:
                self._arrivals.append(
                    _Arrival(
                        sequence=sequence,
                        blob=blob,
                        first_token=token.token,
                        prefill_s=prefill_s,
                    )
                )
            else:
                self._drop([sequence])
        return events

    def _first_token(self, sequence: Sequence, token: Token) -> tuple[list[Event], bool]:
        """What to tell of a choice's first token, and whether it goes on after it."""
        if token.token in self.model.vocab.end_tokens:
            return [_finished(sequence, "stop")], False
        told: list[Event] = [Generated(tokens=(token,))]
        if sequence.is_full:
            return [*told, _finished(sequence, "length")], False
        return told, True

    def _restore(self, arrival: _Arrival) -> list[Event]:
        sequence = arrival.sequence
        try:
            seconds = self._running.restore(sequence, arrival.blob, arrival.first_token)
        except HeteroError as error:
            self._drop([sequence])
            return self._give_up(sequence.job, error)
        return [_joined(sequence.job, prefill_s=arrival.prefill_s, restore_s=seconds)]

    def _decode(self) -> list[Event]:
        try:
            rows = self._running.decode()
        except HeteroError as error:
            logger.error("decode step failed: %s", error)
            jobs = {s.job.request_id: s.job for s in self._running.sequences.values()}
            return [event for job in jobs.values() for event in self._give_up(job, error)]
        seconds = self._running.last_step_s
        self._share.has_stepped(len(self._prompts), len(rows), seconds)
        drawn: list[Token] = []
        ended: list[Event] = []
        end_tokens = self.model.vocab.end_tokens
        for row, sequence in rows:
            if sequence.slot == NO_SLOT:
                continue  # another choice of its job has just failed
            try:
                token = sequence.sampler.sample_row(self.context, row, sequence.next_position)
            except HeteroError as error:
                ended += self._give_up(sequence.job, error)
                continue
            if token in end_tokens:
                self._running.leave(sequence)
                ended.append(_finished(sequence, "stop"))
                continue
            wants_logprob = sequence.job.sampling.top_logprobs is not None
            logits = self.context.row_logits(row) if wants_logprob else None
            drawn.append(sequence.record(token, logits))
            if sequence.is_full:
                self._running.leave(sequence)
                ended.append(_finished(sequence, "length"))
            else:
                self._running.advance(sequence, token)
        return [Generated(tokens=tuple(drawn)), *ended] if drawn else ended

    def _give_up(self, job: Job, error: HeteroError) -> list[Event]:
        self.cancel(job.request_id)
        return [failed(job.request_id, error)]

    def _stop_reading(self, prompt: _Prompt) -> None:
        """Take a prompt off the reading list; all its choices are promised slots again."""
        self._prompts.remove(prompt)
        if prompt.slot is not None:
            self.context.remove_sequence(prompt.slot)
            self._slots.give_back(prompt.slot)
            self._slots.promise(1)
            self._running.plan_rows()

    def _drop(self, sequences: list[Sequence]) -> None:
        """Forget sequences that are promised a slot but sit in none."""
        self._slots.unpromise(len(sequences))
        for sequence in sequences:
            sequence.sampler.close()


def _joined(job: Job, *, prefill_s: float, restore_s: float) -> Joined:
    return Joined(request_id=job.request_id, prefill_s=prefill_s, restore_s=restore_s)


def _finished(sequence: Sequence, reason: Literal["stop", "length"]) -> Finished:
    return Finished(request_id=sequence.job.request_id, choice=sequence.choice, reason=reason)
