"""Where engines run best, and how weights come into memory: found by trying, a process each.

Memory lies where the thread that touched it first ran, or on all nodes in turn if that was asked
for before, so each way is tried from loading on.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from hetero.errors import EngineError, HeteroError
from hetero.kv.layout import KVLayout
from hetero.llama.load_mode import LoadMode
from hetero.llama.model import Model
from hetero.machine.interleaving import can_interleave, interleave
from hetero.profile.ceilings.worker import Call, Prepare
from hetero.profile.ceilings.workers import Worker
from hetero.profile.node.engines import EngineOptions, Engines, KVTypes
from hetero.profile.node.points import Domain
from hetero.profile.node_profile import Role

# What a trial needs of a node: a few sequences, a short chunk, short contexts.
_SEQUENCES, _CONTEXT_TOKENS, _CHUNK_TOKENS = 4, 1024, 64

# Steps are repeated so long, and taken once in any case: of large models one takes longer.
_REPEATED_S = 1.0

# Two processes differ by a few percent in any case: by where their pages happen to lie.
_CLEARLY_FASTER = 0.95

Say = Callable[[str], None]
Seconds = Mapping[Role, float]  # of a step


@dataclass(frozen=True)
class Place:
    """node: None: all NUMA nodes. interleave: those that pages lie on in turn; none: where they are
    touched first."""

    cpus: tuple[int, ...]
    node: int | None
    load: LoadMode
    interleave: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a place is tried with. threads: None: one for each of its CPUs."""

    model: Path
    types: KVTypes
    layout: KVLayout
    domain: Domain
    threads: int | None

    def threads_at(self, place: Place) -> int:
        return self.threads or len(place.cpus)


@dataclass(frozen=True)
class FoundPlace:
    """tried: seconds of one and the same step, by what was tried."""

    place: Place
    tried: dict[Role, dict[str, float]]


def find_place(
    numa: Mapping[int, Sequence[int]],
    roomy: Collection[int],
    job: Job,
    seconds: float,
    say: Say,
) -> FoundPlace:
    """All NUMA nodes, or the one with most CPUs of those in `roomy`, which hold the model, or all
    with their memory interleaved; weights read or mapped. The first of each where there is no time
    to try, or trying fails: that is said.

    numa: node -> CPUs that engines may use.
    """
    deadline = time.monotonic() + seconds
    everywhere = Place(tuple(cpu for cpus in numa.values() for cpu in cpus), None, "read")
    best, others = everywhere, list[Callable[[Place], Place]]()
    candidates = [node for node in numa if node in roomy] if len(numa) > 1 else []
    if candidates:
        node = max(candidates, key=lambda each: len(numa[each]))
        others.append(lambda place: Place(tuple(numa[node]), node, "read"))
    if len(numa) > 1 and can_interleave():
        others.append(lambda place: replace(everywhere, interleave=tuple(numa)))
    elif len(numa) > 1:
        say("interleaved memory: not tried: need the right to choose where memory lies, have none")
    # A mapped file's pages lie where they were first read to, by whomever.
    others.append(lambda place: replace(place, load="mmap", interleave=()))
    tried: dict[str, Seconds] = {}
    best_s: dict[Place, Seconds] = {}

    def step_s(place: Place) -> Seconds:
        taken = _tried(place, job, deadline, len(numa), say)
        words = _words(place, job, len(numa))
        before = tried.get(words, taken)
        tried[words] = {role: min(taken[role], before[role]) for role in taken}
        return taken

    for change in others:
        other = change(best)
        try:
            if best not in best_s:
                best_s[best] = step_s(best)
            # Twice: a process may be lucky, and the machine busy for a while.
            if _is_clearly_faster(step_s(other), best_s[best]):
                best_again_s, other_again_s = step_s(best), step_s(other)
                if _is_clearly_faster(other_again_s, best_again_s):
                    best, best_s = other, {other: other_again_s}
        except HeteroError as error:
            untried = other if best in best_s else best
            say(f"{_words(untried, job, len(numa))}: not tried: {error}")
            if untried == best:
                break
    roles = {role for seconds_of in tried.values() for role in seconds_of}
    return FoundPlace(
        best, {role: {words: taken[role] for words, taken in tried.items()} for role in roles}
    )


def _tried(place: Place, job: Job, deadline: float, num_nodes: int, say: Say) -> Seconds:
    """Raises: EngineError if it fails, or is not done by `deadline`."""
    with closing(Worker(place.cpus)) as worker:
        try:
            worker.reply(_left_s(deadline))  # it runs where it should
            worker.send(Prepare(Trial, (job, place)))
            worker.reply(_left_s(deadline))
            worker.send(Call(step_seconds, ()))
            taken: Seconds = worker.reply(_left_s(deadline))
        except EngineError:
            _left_s(deadline)  # says why, if that is it
            raise
    words = _words(place, job, num_nodes)
    say(f"{words}: " + ", ".join(f"{role} {1e3 * s:.1f} ms" for role, s in taken.items()))
    return taken


def _left_s(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise EngineError("need time for it, have its share of the budget spent")
    return left_s


def _words(place: Place, job: Job, num_nodes: int) -> str:
    where = [] if num_nodes == 1 else ["all nodes" if place.node is None else f"node {place.node}"]
    spread = ["interleaved"] if place.interleave else []
    return ", ".join([*where, *spread, f"{job.threads_at(place)} threads", place.load])


def _is_clearly_faster(other: Seconds, best: Seconds) -> bool:
    """Both roles count alike, as a node alone has both."""
    ratio = math.prod(other[role] / best[role] for role in best)
    return ratio ** (1 / len(best)) < _CLEARLY_FASTER


class Trial:
    """In the worker's process: the engine on its CPUs."""

    def __init__(self, job: Job, place: Place) -> None:
        interleave(place.interleave)  # before anything is loaded
        threads = job.threads_at(place)
        domain = Domain(
            min(job.domain.max_sequences, _SEQUENCES),
            min(job.domain.context_tokens, _CONTEXT_TOKENS),
            min(job.domain.chunk_tokens, _CHUNK_TOKENS),
        )
        self.engines = Engines(
            Model(job.model, load=place.load),
            {job.types: job.layout},
            EngineOptions(domain=domain, num_cores=threads, threads=threads),
        )


def step_seconds(trial: Trial) -> dict[Role, float]:
    # Of the one count that it was given.
    trial.engines.find_threads(until=time.monotonic() + _REPEATED_S)
    return {role: min(taken.values()) for role, taken in trial.engines.tried.items()}
