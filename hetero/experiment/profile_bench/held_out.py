"""Figures `held_out`: what a profile predicts against what is then measured.

Points are drawn at random from what a node may meet, anew each time, by nothing that the profiler
draws from. Decode steps are those of the engine that nodes run, sampling and all; prompts are read
in whole, chunk by chunk, by the prefill engine where the cache is its own. A profile's seconds are
those of an undisturbed machine and a cache that lies anywhere in memory: each point is measured in
three engines, opened minutes apart, several steps each; the fastest of an engine's steps counts,
and the middle one of the engines. Pilots tell how fast the machine is by then, against its speed
when it was profiled; with them its drift is divided out, and the figures without are among the
arms.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from hetero.experiment.engine_bench.driven_engine import DrivenEngine
from hetero.experiment.figures import Figure, Say, at_most
from hetero.experiment.models import layout_of
from hetero.experiment.profile_bench.settings import Settings
from hetero.experiment.turns import timed_steps
from hetero.llama.model import Model
from hetero.messages import Sampling
from hetero.prefill.engine import Slice
from hetero.prefill.llama_engine import LlamaEngine
from hetero.profile.node.pilot import Pilots
from hetero.profile.node.rig import StepRig
from hetero.profile.node_profile import PILOT_OF, EngineFit, NodeProfile, Role
from hetero.profile.quantile import quantile
from hetero.profile.random_text import RandomText
from hetero.profile.states import States

_PASSES = 3
_STEPS = 6
_SAMPLING = Sampling(ignore_eos=True)
_LEAST_TOKENS = 16

_Prompt = tuple[int, int]  # tokens, and those that are cached before them
_ReadPrompt = Callable[[_Prompt], list[float]]  # seconds of its chunks


class _Point(NamedTuple):
    """predicted, measured: seconds."""

    predicted_s: float
    measured_s: float
    about: dict[str, Any]


def measure(
    settings: Settings, name: str, path: Path, profile: NodeProfile, say: Say
) -> list[Figure]:
    seed = secrets.randbits(32)  # nothing was tuned on these points
    random = np.random.default_rng(seed)
    fits = [fit for fit in profile.fits if fit.source == "fitted" and fit.engine == "llama"]
    threads = {role: found.threads for role, found in profile.settings.items()}
    assert profile.noise is not None
    figures = []
    with Model(path) as model:
        states = {
            kv: States(model, layout_of(path, kv), num_threads=threads["decode"])
            for kv in {fit.kv_k for fit in fits}
        }
        first = next(iter(states.values())).layout
        with Pilots(model, first, threads=threads) as pilots:
            for role, pilot in PILOT_OF.items():
                of_role = [fit for fit in fits if fit.role == role]
                draws = []
                for index, fit in enumerate(of_role):
                    draw = _Draw(
                        settings=settings,
                        path=path,
                        model=model,
                        fit=fit,
                        longest_prompt=settings.models[name].longest_prompt,
                        states=states[fit.kv_k],
                        fly=partial(pilots.run, pilot),
                    )
                    draw.draw(len(range(index, settings.num_points, len(of_role))), random)
                    draws.append(draw)
                # All fits in each pass, so that one point's times are minutes apart.
                for number in range(_PASSES):
                    for draw in draws:
                        draw.measure()
                    say(f"{name} {role}: {number + 1} of {_PASSES} passes")
                points = [point for draw in draws for point in draw.points()]
                for point in points:
                    say(
                        f"{name} {role}: predicted {point.predicted_s:.4f} s, measured "
                        f"{point.measured_s:.4f} s, {point.about}"
                    )
                speed = profile.noise.pilot_s[pilot] / pilots.logs[pilot].undisturbed_s
                figures += _figures(name, role, points, speed, seed)
    return figures


def _figures(name: str, role: Role, found: list[_Point], speed: float, seed: int) -> list[Figure]:
    """speed: of the machine, over what it was when it was profiled."""
    errors = [abs(point.predicted_s / (point.measured_s * speed) - 1) for point in found]
    arms = {
        "error_ratio": errors,
        "error_as_clocked_ratio": [
            abs(point.predicted_s / point.measured_s - 1) for point in found
        ],
        "predicted_s": [point.predicted_s for point in found],
        "measured_s": [point.measured_s for point in found],
        "speed_ratio": [speed],
    }
    parameters = {"seed": seed, "points": [point.about for point in found]}
    return [
        Figure(
            name=f"held_out_{role}_{which}_{name}",
            says=f"{which} relative error of {role} predictions, the machine's drift divided out",
            value=value,
            unit="ratio",
            target=at_most(bound),
            arms=arms if which == "median" else {"error_ratio": errors},
            parameters=parameters if which == "median" else {},
        )
        for which, value, bound in (
            ("median", median(errors), 0.05),
            ("p90", quantile(errors, 0.9), 0.12),
        )
    ]


@dataclass(frozen=True, kw_only=True)
class _Draw:
    """Points of one fit: first drawn, then measured in passes. fly: the pilot, beside each."""

    settings: Settings
    path: Path
    model: Model
    fit: EngineFit
    longest_prompt: int
    states: States
    fly: Callable[[], object]
    batches: list[list[int]] = field(default_factory=list)  # contexts of each
    prompts: list[_Prompt] = field(default_factory=list)
    passes: list[list[list[float]]] = field(default_factory=list)  # of points, of their parts

    def draw(self, count: int, random: np.random.Generator) -> None:
        """Batches with contexts of any length; whole prompts, some after cached tokens."""
        settings = self.settings
        # The first to arrive takes a step while each other one joins.
        longest = settings.context_tokens - 2 * _STEPS - settings.slots
        for _ in range(count):
            if self.fit.role == "decode":
                size = random.integers(1, settings.slots + 1)
                self.batches.append([_length(random, longest) for _ in range(size)])
            else:
                num_tokens = _between(random, _LEAST_TOKENS, self.longest_prompt)
                room = settings.context_tokens - num_tokens
                has_cached = room > 1 and random.random() < 0.5
                cached = int(random.integers(1, room)) if has_cached else 0
                self.prompts.append((num_tokens, cached))

    def measure(self) -> None:
        """One pass over all points."""
        if self.fit.role == "decode":
            with self._driven() as driven:
                found = [[self._step_s(driven, lengths)] for lengths in self.batches]
        else:
            read = self._read_by_engine if self.fit.unified else self._read_by_rig
            with read() as chunks_s:
                found = [chunks_s(prompt) for prompt in self.prompts]
        self.passes.append(found)

    def points(self) -> Iterator[_Point]:
        """With the middle one of all passes, of each part."""
        fit = self.fit
        about: dict[str, Any] = {"kv": fit.kv_k, "unified": fit.unified}
        measured = [
            sum(median(parts) for parts in zip(*found, strict=True))
            for found in zip(*self.passes, strict=True)
        ]
        if fit.role == "decode":
            for lengths, seconds in zip(self.batches, measured, strict=True):
                yield _Point(fit.step_s(lengths), seconds, about | {"contexts": lengths})
            return
        for (num_tokens, cached), seconds in zip(self.prompts, measured, strict=True):
            predicted_s = fit.prefill_s(num_tokens, cached) - fit.request_s
            yield _Point(predicted_s, seconds, about | {"tokens": num_tokens, "cached": cached})

    def _driven(self) -> DrivenEngine:
        """The engine that decode nodes run."""
        return DrivenEngine(
            self.path,
            self.states.layout,
            num_slots=self.settings.slots,
            context_tokens=self.settings.context_tokens,
            num_threads=self.fit.threads,
            sampling=_SAMPLING,
            unified=self.fit.unified,
        )

    def _step_s(self, driven: DrivenEngine, lengths: Sequence[int]) -> float:
        self.fly()
        for seed, length in enumerate(lengths):
            driven.arrive(self.states.make(length, driven.num_streams, seed), length)
        driven.fill(len(lengths))
        seconds = min(timed_steps(driven.step, _STEPS))
        for request in list(driven.lengths):
            driven.leave(request)
        return seconds

    @contextmanager
    def _read_by_rig(self) -> Iterator[_ReadPrompt]:
        """As a decode node's engine reads a prompt, into a stream."""
        settings, fit = self.settings, self.fit
        with StepRig(
            self.model,
            self.states.layout,
            num_sequences=2,
            context_tokens=settings.context_tokens,
            unified=False,
            num_threads=fit.threads,
            chunk_tokens=settings.chunk_tokens,
            states=self.states,
        ) as rig:

            def chunks_s(prompt: _Prompt) -> list[float]:
                self.fly()
                seconds = []
                for first, num_tokens in self._chunks(*prompt):
                    rig.hold([first])
                    seconds.append(rig.time_chunk(num_tokens))
                return seconds

            yield chunks_s

    @contextmanager
    def _read_by_engine(self) -> Iterator[_ReadPrompt]:
        """By the engine of a prefill node, to frames of rows."""
        settings, fit = self.settings, self.fit
        text = RandomText(self.model.vocab.num_tokens)
        engine = LlamaEngine(
            self.path,
            self.states.layout,
            context_tokens=settings.context_tokens,
            num_threads=fit.threads,
            chunk_tokens=settings.chunk_tokens,
        )

        def chunks_s(prompt: _Prompt) -> list[float]:
            self.fly()
            num_tokens, cached = prompt
            run = engine.start(text.draw(cached + num_tokens).tolist())
            if cached:
                engine.context.restore_sequence(0, self.states.make(cached, 1, seed=0))
                run.num_read = cached
            seconds = []
            for _, size in self._chunks(num_tokens, cached):
                started = time.perf_counter()
                for _ in engine.read([Slice(run, size)]):
                    pass
                seconds.append(time.perf_counter() - started)
            engine.end(run)
            return seconds

        try:
            yield chunks_s
        finally:
            engine.close()

    def _chunks(self, num_tokens: int, cached: int) -> Iterator[tuple[int, int]]:
        """Of a prompt: cells before it, and tokens."""
        chunk_tokens = self.settings.chunk_tokens
        for first in range(0, num_tokens, chunk_tokens):
            yield cached + first, min(chunk_tokens, num_tokens - first)


def _length(random: np.random.Generator, longest: int) -> int:
    if random.random() < 0.5:
        return int(random.integers(_LEAST_TOKENS, longest))
    return _between(random, _LEAST_TOKENS, longest)


def _between(random: np.random.Generator, low: int, high: int) -> int:
    """Any order of magnitude as likely as another."""
    return int(np.exp(random.uniform(np.log(low), np.log(high))))
