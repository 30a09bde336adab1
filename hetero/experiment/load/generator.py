"""Runs a schedule against a server: when what is sent, whatever becomes of what was sent before.

Open loop: each session begins at its time, by this process's own clock. Closed loop: as many
sessions as there are places, each place's next when its last is over. A session's turns follow one
another, each after its think time.
"""

import asyncio
import gc
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

import msgspec

from hetero.experiment.load.answer import Answer
from hetero.experiment.load.client import Client
from hetero.experiment.load.endpoint import Endpoint
from hetero.experiment.load.overhead import Overhead, Share
from hetero.experiment.load.plan import LoadPlan
from hetero.experiment.load.prompts import Prompts
from hetero.experiment.load.record import RequestError, RequestRecord
from hetero.workload.schedule import Schedule, Session, Turn

Done = Callable[[RequestRecord], None]

# The event loop's timers are as coarse as this; the rest of a wait is spent asking the clock.
_TIMER_S = 0.0015
# A repeated schedule must not meet what it left in the server's cache: its blocks get other ids.
# Far above any trace's.
_OTHER_BLOCKS = 2**48
_BESIDE_BLOCKS = 2**56
_WARM_UP_BLOCKS = 2**57


@dataclass(frozen=True, kw_only=True)
class LoadRun:
    """Records in the order they ended. began_s: time.perf_counter when the load began."""

    began_s: float
    records: list[RequestRecord]
    is_partial: bool  # interrupted
    share: Share


@dataclass(frozen=True)
class Target:
    client: Client
    endpoint: Endpoint
    prompts: Prompts


async def run_load(target: Target, plan: LoadPlan, done: Done = lambda record: None) -> LoadRun:
    """Interrupted (cancelled), it returns what is finished, and says that it is partial."""
    # The same ids in both schedules do not mean the same text.
    beside_schedule = plan.beside and _moved_schedule(plan.beside, _BESIDE_BLOCKS)
    for schedule in (plan.schedule, beside_schedule):
        if schedule is not None:
            target.prompts.prepare(schedule)
    await _warm_up(target, plan)
    if not plan.schedule.is_open:
        await target.client.connect(plan.concurrency)
    records: list[RequestRecord] = []
    began_s = time.perf_counter()
    overhead = Overhead()
    is_partial = False

    def keep(record: RequestRecord) -> None:
        records.append(record)
        done(record)

    main = _Flow("main", target, plan.schedule, began_s, keep)
    with _no_collector():
        try:
            async with _running_beside(target, beside_schedule, plan, began_s, keep):
                await main.run(plan.concurrency, plan.duration_s)
        except asyncio.CancelledError:
            is_partial = True
    return LoadRun(
        began_s=began_s,
        records=records,
        is_partial=is_partial,
        share=overhead.end(records),
    )


@asynccontextmanager
async def _running_beside(
    target: Target, schedule: Schedule | None, plan: LoadPlan, began_s: float, keep: Done
) -> AsyncIterator[None]:
    """From its first answer on: what is measured is a server under both loads, all the time.
    Requests that are under way in the end are waited for: the slow ones count, too."""
    if schedule is None:
        yield
        return
    flow = _Flow("beside", target, schedule, began_s, keep)
    task = asyncio.create_task(flow.run(plan.beside_concurrency, math.inf))
    task.add_done_callback(lambda _: flow.answered.set())
    try:
        await flow.answered.wait()
        yield
        flow.over.set()
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class _Flow:
    """One schedule's requests."""

    def __init__(
        self, name: str, target: Target, schedule: Schedule, began_s: float, keep: Done
    ) -> None:
        self._name = name
        self._target = target
        self._schedule = schedule
        self._began_s = began_s
        self._keep = keep
        self._start_s = 0.0  # when this flow began; all times are since the load began
        self.answered = asyncio.Event()
        self.over = asyncio.Event()  # set: begin nothing more

    async def run(self, concurrency: int, duration_s: float | None) -> None:
        """duration_s: repeat the schedule for so long; None: once, as long as it takes."""
        self._start_s = self._now()
        sessions = self._sessions(duration_s)
        async with asyncio.TaskGroup() as group:
            if not self._schedule.is_open:
                for _ in range(concurrency):
                    group.create_task(self._place(sessions))
                return
            for index, session in sessions:
                due_s = self._start_s + (session.at_s or 0.0)
                body = self._body(session.turns[0])
                if not await self._is_due(due_s):
                    return
                group.create_task(self._session(index, session, due_s, body))

    def _sessions(self, duration_s: float | None) -> Iterator[tuple[int, Session]]:
        """Numbered. In a repetition everything is as before, but for the tokens."""
        sessions = self._schedule.sessions
        last_s = sessions[-1].at_s or 0.0
        period_s = last_s * len(sessions) / (len(sessions) - 1) if len(sessions) > 1 else 1.0
        index = 0
        while True:
            for session in sessions:
                num_before = index // len(sessions)
                if num_before:
                    at_s = None if session.at_s is None else session.at_s + num_before * period_s
                    session = _moved(session, num_before * _OTHER_BLOCKS, at_s)
                begins_s = self._now() - self._start_s if session.at_s is None else session.at_s
                if duration_s is not None and begins_s >= duration_s:
                    return
                yield index, session
                index += 1
            if duration_s is None:
                return

    async def _place(self, sessions: Iterator[tuple[int, Session]]) -> None:
        due_s = self._start_s
        for index, session in sessions:
            if self.over.is_set():
                return
            due_s = await self._session(index, session, due_s, self._body(session.turns[0]))

    async def _session(self, index: int, session: Session, due_s: float, body: bytes) -> float:
        """When it was over."""
        for number, turn in enumerate(session.turns):
            if number:
                body = self._body(turn)
                due_s += turn.think_s
                if not await self._is_due(due_s):
                    break
            name = f"{self._name}-{index}-{number}"
            sent_s = self._now()
            answer = await self._target.client.ask(body, name)
            record = self._record(index, number, turn, due_s, sent_s, answer)
            self.answered.set()
            self._keep(record)
            due_s = record.ended_s if record.ended_s is not None else self._now()
        return due_s

    def _record(
        self, session: int, number: int, turn: Turn, due_s: float, sent_s: float, answer: Answer
    ) -> RequestRecord:
        ended_s = self._now() if answer.ended_s is None else answer.ended_s - self._began_s
        record = RequestRecord(
            session=session,
            turn=number,
            flow=self._name,
            due_s=due_s,
            sent_s=sent_s,
            prompt_tokens=turn.prompt_tokens,
            output_tokens=turn.output_tokens,
            ended_s=ended_s,
        )
        return told_by(record, answer, self._began_s, self._target.endpoint.ignores_eos)

    def _body(self, turn: Turn) -> bytes:
        prompt = self._target.prompts.json(turn, self._schedule.block_tokens)
        return self._target.endpoint.body(prompt, turn.output_tokens)

    def _now(self) -> float:
        return time.perf_counter() - self._began_s

    async def _is_due(self, due_s: float) -> bool:
        """Returns then. False: the flow was over before, at once."""
        left_s = due_s - self._now()
        if left_s > _TIMER_S:
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s - _TIMER_S):
                    await self.over.wait()
        while self._now() < due_s and not self.over.is_set():
            await asyncio.sleep(0)
        return not self.over.is_set()


def told_by(
    record: RequestRecord, answer: Answer, began_s: float, is_length_fixed: bool
) -> RequestRecord:
    """The record with what the answer says. is_length_fixed: fewer tokens are an error."""
    piece_s, piece_tokens = answer.pieces()
    error = answer.error
    if error is None and is_length_fixed and answer.num_tokens < record.output_tokens:
        says = f"answer: need {record.output_tokens} tokens, have {answer.num_tokens}"
        error = RequestError(kind="short", says=says)
    usage = answer.usage
    return msgspec.structs.replace(
        record,
        piece_s=tuple(at_s - began_s for at_s in piece_s),
        piece_tokens=piece_tokens,
        counted_prompt_tokens=usage.prompt_tokens if usage else None,
        counted_output_tokens=usage.completion_tokens if usage else None,
        error=error,
        route=answer.route,
        stages=answer.stages,
    )


async def _warm_up(target: Target, plan: LoadPlan) -> None:
    """The schedule's first requests, with tokens of their own, as many at once as there will be."""
    turns = [session.turns[0] for session in plan.schedule.sessions[: plan.warmup]]
    at_once = asyncio.Semaphore(plan.concurrency)

    async def ask(turn: Turn, number: int) -> None:
        async with at_once:
            prompt = target.prompts.json(turn, plan.schedule.block_tokens)
            body = target.endpoint.body(prompt, turn.output_tokens)
            await target.client.ask(body, f"warmup-{number}")

    moved = [_moved(Session(turns=(turn,)), _WARM_UP_BLOCKS, None).turns[0] for turn in turns]
    await asyncio.gather(*(ask(turn, number) for number, turn in enumerate(moved)))


def _moved_schedule(schedule: Schedule, blocks: int) -> Schedule:
    moved = tuple(_moved(session, blocks, session.at_s) for session in schedule.sessions)
    return msgspec.structs.replace(schedule, sessions=moved)


def _moved(session: Session, blocks: int, at_s: float | None) -> Session:
    turns = tuple(
        msgspec.structs.replace(turn, blocks=tuple(block + blocks for block in turn.blocks))
        for turn in session.turns
    )
    return Session(turns=turns, at_s=at_s)


@contextmanager
def _no_collector() -> Iterator[None]:
    """Python's garbage collector stops everything for milliseconds, at moments of its own."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
