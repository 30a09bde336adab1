"""What measures a recipe's arms, by its kind."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from hetero.experiment.kv_quality.bench import KVQuality
from hetero.experiment.outcome.arm_run import Arm
from hetero.experiment.outcome.measured import Measured
from hetero.experiment.recipe.arms import settings_of
from hetero.experiment.recipe.recipe import Quality, QualitySettings, Recipe
from hetero.experiment.recipe_run.runner import Bench, Say


class Opened(NamedTuple):
    """cpus: those that arms use, for the pilots. model: what is known of the model, for results."""

    bench: Bench
    cpus: list[int]
    model: dict[str, object]
