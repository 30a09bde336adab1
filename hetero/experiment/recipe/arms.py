"""Which arms a recipe has, what each is set to, and in which order they are measured."""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

import msgspec

from hetero.experiment.recipe.figures import Arm, Selection, Value
from hetero.experiment.recipe.recipe import (
    LIVE_SETTINGS,
    QualitySettings,
    Recipe,
    Serving,
    Settings,
    WireSettings,
)

AnySettings = Settings | QualitySettings | WireSettings


def arms_of(recipe: Recipe) -> list[Arm]:
    """In the file's order: candidates, then settings, the last one varying fastest. A candidate has
    no key for a setting that it ignores."""
    if not isinstance(recipe, Serving):
        return list(_combinations({}, recipe.vary))
    return [
        arm
        for name, candidate in recipe.candidates.items()
        for arm in _combinations(
            {"candidate": name},
            {key: recipe.vary[key] for key in recipe.vary if key not in candidate.ignores},
        )
    ]


def num_arms(recipe: Recipe) -> int:
    """Without listing them: a typing error can make millions."""
    ignored = (
        [each.ignores for each in recipe.candidates.values()]
        if isinstance(recipe, Serving)
        else [[]]
    )
    return sum(
        math.prod(len(values) for key, values in recipe.vary.items() if key not in ignores)
        for ignores in ignored
    )


def settings_of(recipe: Recipe, arm: Arm) -> AnySettings:
    """The recipe's, then the candidate's own, then what is varied."""
    fields = msgspec.structs.asdict(recipe.settings)
    if isinstance(recipe, Serving):
        fields |= recipe.candidates[str(arm["candidate"])].settings
    fields |= {key: value for key, value in arm.items() if key != "candidate"}
    settings: AnySettings = msgspec.convert(fields, type(recipe.settings))
    return settings


def selects(arm: Arm, selection: Selection) -> bool:
    """A setting that the arm's candidate ignores has any value."""
    return all(key not in arm or arm[key] == value for key, value in selection.items())


def deployment_of(arm: Arm) -> Arm:
    """The part of an arm that takes a cluster of its own; the rest changes while it is up."""
    return {key: value for key, value in arm.items() if key not in LIVE_SETTINGS}


def plan_order(arms: Sequence[Arm], repetitions: int, seed: int) -> list[tuple[Arm, int]]:
    """(arm, repetition from 0) in the order to measure them: every arm once, then every arm again.

    Arms of one deployment are neighbours, so that it is brought up once for them. The deployments
    are shuffled, so that their order in the file means nothing; every other repetition goes
    backwards, so that a steady drift of the machine adds the same to every arm.
    """
    groups: dict[frozenset[tuple[str, Value]], list[Arm]] = {}
    for arm in arms:
        groups.setdefault(frozenset(deployment_of(arm).items()), []).append(arm)
    deployments = list(groups.values())
    random.Random(seed).shuffle(deployments)
    there = [arm for deployment in deployments for arm in deployment]
    back = there[::-1]
    return [
        (arm, repetition)
        for repetition in range(repetitions)
        for arm in (back if repetition % 2 else there)
    ]


def arm_text(arm: Arm) -> str:
    """For people: `split, kv q8_0, concurrency 4`."""
    settings = (f"{key} {value}" for key, value in arm.items() if key != "candidate")
    candidate = (str(arm["candidate"]),) if "candidate" in arm else ()
    return ", ".join((*candidate, *settings)) or "the only arm"


def _combinations(first: Arm, vary: dict[str, list[Value]]) -> Iterator[Arm]:
    combinations: Iterable[tuple[Value, ...]] = product(*vary.values())
    for values in combinations:
        yield first | dict(zip(vary, values, strict=True))
