"""Figures `held_out`: what a profile predicts against what is then measured.

Points are drawn at random from what a node may meet, by nothing that the profiler draws from.
Decode steps are those of the engine that nodes run, sampling and all; prompts are read in whole,
chunk by chunk. Pilots beside each point tell how fast the machine is by then, against its speed
when it was profiled: with them the machine's drift is divided out, and the figures without are
among the arms.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from hetero.experiment.engine_bench.driven_engine import DrivenEngine
from hetero.experiment.figures import Figure, Say, at_most
from hetero.experiment.models import layout_of
from hetero.experiment.profile_bench.settings import Settings
from hetero.experiment.turns import quantile, timed_steps
from hetero.llama.model import Model
from hetero.messages import Sampling
from hetero.profile.node.pilot import Pilots
from hetero.profile.node.rig import StepRig
from hetero.profile.node_profile import PILOT_OF, EngineFit, NodeProfile, Role
from hetero.profile.states import States

_STEPS = 5
_SEED = 20260
_SAMPLING = Sampling(ignore_eos=True)

# A point: what was predicted and measured, both in seconds, and what it was.
_Point = tuple[float, float, dict[str, Any]]


def measure(
    settings: Settings, name: str, path: Path, profile: NodeProfile, say: Say
) -> list[Figure]:
    random = np.random.default_rng(_SEED)
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
                points: list[_Point] = []
                first_run = pilots.run(pilot)
                for index, fit in enumerate(of_role):
                    count = len(range(index, settings.num_points, len(of_role)))
                    draw = _Draw(settings, path, model, fit, states[fit.kv_k], random)
                    for point in draw.points(count):
                        points.append(point)
                        pilots.run(pilot)
                        say(
                            f"{name} {role}: predicted {point[0]:.4f} s, measured "
                            f"{point[1]:.4f} s, {point[2]}"
                        )
                now_s = [
                    pilots.log.around_s(pilot, first_run + index) for index in range(len(points))
                ]
                speeds = [profile.noise.pilot_s[pilot] / around_s for around_s in now_s]
                figures += _figures(name, role, points, speeds)
    return figures


def _figures(name: str, role: Role, found: list[_Point], speeds: list[float]) -> list[Figure]:
    errors = [
        abs(predicted / (measured * speed) - 1)
        for (predicted, measured, _), speed in zip(found, speeds, strict=True)
    ]
    arms = {
        "error_ratio": errors,
        "error_as_clocked_ratio": [abs(point[0] / point[1] - 1) for point in found],
        "predicted_s": [point[0] for point in found],
        "measured_s": [point[1] for point in found],
        "speed_ratio": speeds,
    }
    parameters = {"points": [point[2] for point in found]}
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


@dataclass(frozen=True)
class _Draw:
    """What points of one fit are drawn and measured with."""

    settings: Settings
    path: Path
    model: Model
    fit: EngineFit
    states: States
    random: np.random.Generator

    def points(self, count: int) -> Iterator[_Point]:
        return self._decode(count) if self.fit.role == "decode" else self._prefill(count)

    def _decode(self, count: int) -> Iterator[_Point]:
        """Batches of the node's own engine, contexts of any length, some a few tokens, some all."""
        settings, fit, random = self.settings, self.fit, self.random
        with DrivenEngine(
            self.path,
            self.states.layout,
            num_slots=settings.slots,
            context_tokens=settings.context_tokens,
            num_threads=fit.threads,
            sampling=_SAMPLING,
            unified=fit.unified,
        ) as driven:
            for _ in range(count):
                size = int(random.integers(1, settings.slots + 1))
                # The first to arrive takes a step while each other one joins.
                longest = settings.context_tokens - 2 * _STEPS - size
                for seed in range(size):
                    length = _length(random, longest)
                    driven.arrive(self.states.make(length, driven.num_streams, seed), length)
                driven.fill(size)
                driven.step()
                contexts = list(driven.lengths.values())
                seconds = timed_steps(driven.step, _STEPS)
                about = {"kv": fit.kv_k, "unified": fit.unified, "contexts": contexts}
                predicted_s = fit.step_s([cells + _STEPS // 2 for cells in contexts])
                yield predicted_s, median(seconds), about
                for request in list(driven.lengths):
                    driven.leave(request)

    def _prefill(self, count: int) -> Iterator[_Point]:
        """Whole prompts after some cached tokens of their own, or none."""
        settings, fit, random = self.settings, self.fit, self.random
        chunk_tokens = settings.chunk_tokens
        with StepRig(
            self.model,
            self.states.layout,
            num_sequences=2,
            context_tokens=settings.context_tokens,
            unified=fit.unified,
            num_threads=fit.threads,
            chunk_tokens=chunk_tokens,
            states=self.states,
        ) as rig:
            for _ in range(count):
                logarithm = random.uniform(np.log(16), np.log(settings.longest_prompt))
                num_tokens = int(np.exp(logarithm))
                room = settings.context_tokens - num_tokens
                cached = int(random.integers(1, room)) if random.random() < 0.5 else 0
                rig.hold([cached])
                rig.time_chunk(min(16, num_tokens))  # the pilot has had the caches
                seconds = 0.0
                for first in range(0, num_tokens, chunk_tokens):
                    rig.hold([cached + first])
                    seconds += rig.time_chunk(min(chunk_tokens, num_tokens - first))
                about = {"kv": fit.kv_k, "unified": fit.unified}
                about |= {"tokens": num_tokens, "cached": cached}
                yield fit.prefill_s(num_tokens, cached) - fit.request_s, seconds, about


def _length(random: np.random.Generator, longest: int) -> int:
    if random.random() < 0.5:
        return int(random.integers(16, longest))
    return int(np.exp(random.uniform(np.log(16), np.log(longest))))
