"""Figure `churn`: what sequences that come and go cost the others.

Ceiling: the tokens per second of a batch in which nobody moves. A hand-over between steps costs a
restore, one memcpy of its context; a leave opens a gap, which costs a row in every step until it
is filled. Both engines have about the same mean batch: half the leaves come before their join.
"""

import time
from dataclasses import dataclass
from statistics import mean, median

import numpy as np

from hetero.experiment.engine_bench.driven_engine import DrivenEngine
from hetero.experiment.engine_bench.settings import Settings
from hetero.experiment.figures import Figure, Say, at_least
from hetero.experiment.models import layout_of, model_file
from hetero.experiment.turns import flat, ratios, take_turns
from hetero.profile.states import States

_KV_TYPE = "q8_0"

# Hand-overs are replayed from a few states: what they hold does not matter, only their size.
_NUM_STATES = 4

# Between the two halves of a change, at most; also how far the batch may swing.
_MOST_STEPS_APART = 3


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What happens before one step."""

    num_leaving: int
    num_arriving: int


def seeded_changes(num_steps: int, every: int, rng: np.random.Generator) -> list[Changes]:
    """A leave and a join about once in `every` steps, a few steps apart, either one first."""
    leaves, arrivals = np.zeros(num_steps, int), np.zeros(num_steps, int)
    for step in np.flatnonzero(rng.random(num_steps) < 1 / every).tolist():
        later = min(step + int(rng.integers(0, _MOST_STEPS_APART + 1)), num_steps - 1)
        first, second = (leaves, arrivals) if rng.random() < 0.5 else (arrivals, leaves)
        first[step] += 1
        second[later] += 1
    return [
        Changes(num_leaving=int(leave), num_arriving=int(arrive))
        for leave, arrive in zip(leaves, arrivals, strict=True)
    ]


def measure(settings: Settings, say: Say) -> list[Figure]:
    path = model_file(settings.folder, settings.shape, settings.quant, say)
    layout = layout_of(path, _KV_TYPE)
    size, num_tokens = settings.churn_batch, settings.context_tokens

    def engine() -> DrivenEngine:
        return DrivenEngine(
            path,
            layout,
            num_slots=size + size // 2,
            context_tokens=num_tokens + settings.headroom_tokens,
            num_threads=settings.num_threads,
        )

    with engine() as steady, engine() as churning:
        states = States(steady.engine.model, layout, num_threads=settings.num_threads)
        blobs = [states.make(num_tokens, steady.num_streams, seed) for seed in range(_NUM_STATES)]
        for driven in (steady, churning):
            for index in range(size):
                driven.arrive(blobs[index % _NUM_STATES], num_tokens)
            driven.fill(size)
        rng = np.random.default_rng(0)
        sizes: list[float] = []
        num_joins = 0

        def steady_turn() -> list[float]:
            started = time.perf_counter()
            produced = sum(steady.step() for _ in range(settings.churn_steps))
            return [produced / (time.perf_counter() - started)]

        def churning_turn() -> list[float]:
            nonlocal num_joins
            # As long as the steady sequences are by now: fresh ones would make steps cheaper.
            length = round(mean(steady.lengths.values()))
            blobs = [states.make(length, churning.num_streams, seed) for seed in range(_NUM_STATES)]
            changes = seeded_changes(settings.churn_steps, settings.churn_every, rng)
            produced = 0
            started = time.perf_counter()
            for change in changes:
                for _ in range(change.num_leaving):
                    running = list(churning.lengths)
                    churning.leave(running[rng.integers(len(running))])
                for _ in range(change.num_arriving):
                    churning.arrive(blobs[num_joins % _NUM_STATES], length)
                    num_joins += 1
                produced += churning.step()
            seconds = time.perf_counter() - started
            sizes.append(produced / settings.churn_steps)
            return [produced / seconds]

        say(f"churn at batch {size}: the ceiling is the same batch undisturbed, measured beside it")
        rounds = take_turns({"steady": steady_turn, "churning": churning_turn}, settings.num_rounds)
    shares = ratios(rounds["churning"], rounds["steady"])
    return [
        Figure(
            name="churn",
            says="tokens per second while sequences join and leave, over those of a steady batch",
            value=median(shares),
            unit="ratio",
            target=at_least(0.9),
            arms={
                "round_ratio": shares,
                "churning_tokens_per_s": flat(rounds["churning"]),
                "steady_tokens_per_s": flat(rounds["steady"]),
            },
            parameters={
                "model": settings.shape.name,
                "quant": settings.quant,
                "kv_type": _KV_TYPE,
                "context_tokens": num_tokens,
                "steps_per_turn": settings.churn_steps,
                "steps_per_change": settings.churn_every,
                "steady_batch": size,
                "churning_mean_batch": mean(sizes),
                "joins": num_joins,
                "blob_bytes": blobs[0].nbytes,
            },
        )
    ]
