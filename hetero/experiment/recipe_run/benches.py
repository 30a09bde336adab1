"""What measures a recipe's arms, by its kind."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec

from hetero.errors import HeteroError
from hetero.experiment.deploy.llama_server import find_binary
from hetero.experiment.deploy.model_files import ModelFile, model_file
from hetero.experiment.deploy.node_configs import prepare_recordings
from hetero.experiment.deploy.site import make_site
from hetero.experiment.kv_quality.bench import KVQuality
from hetero.experiment.kv_wire.arm import end_cores
from hetero.experiment.kv_wire.arm import measure as measure_wire
from hetero.experiment.outcome.measured import Measured
from hetero.experiment.recipe.arms import settings_of
from hetero.experiment.recipe.figures import Arm
from hetero.experiment.recipe.recipe import (
    Quality,
    QualitySettings,
    Recipe,
    Wire,
    WireSettings,
)
from hetero.experiment.recipe_run.run_folder import RunFolder
from hetero.experiment.recipe_run.runner import Bench, Say
from hetero.experiment.recipe_run.serving_bench import ServingBench
from hetero.model.fingerprint import fingerprint_model


class Opened(NamedTuple):
    """cpus: those that timed arms use, for the pilots. model: what a result says of it."""

    bench: Bench
    cpus: list[int]
    model: dict[str, Any]


@contextmanager
def open_bench(recipe: Recipe, folder: RunFolder, say: Say) -> Iterator[Opened]:
    """Raises: HeteroError for what this machine, or the recipe's model, lacks."""
    if isinstance(recipe, Wire):
        yield Opened(_WireBench(recipe, say), list(end_cores()), {})
        return
    model = model_file(recipe.model, say)
    known = _known(model)
    if isinstance(recipe, Quality):
        with KVQuality(recipe, model.path) as quality:
            yield Opened(_QualityBench(recipe, quality), [], known)
    else:
        # Before anything is measured, not at the first of its arms.
        for peer in (candidate.peer for candidate in recipe.candidates.values()):
            if peer is not None:
                find_binary(peer)
        prepare_recordings(recipe, model.path, say)
        with (
            make_site(recipe.cluster) as site,
            ServingBench(recipe, site, model.path, folder, say) as serving,
        ):
            yield Opened(serving, site.cpus, known)


class _QualityBench:
    is_timed = False

    def __init__(self, recipe: Quality, quality: KVQuality) -> None:
        self._recipe, self._quality = recipe, quality

    def measure(self, arm: Arm, repetition: int) -> Measured:
        settings = settings_of(self._recipe, arm)
        assert isinstance(settings, QualitySettings)
        found = self._quality.measure(settings, repetition, _quiet)
        return msgspec.structs.replace(found, settings=msgspec.to_builtins(settings))


class _WireBench:
    is_timed = True

    def __init__(self, recipe: Wire, say: Say) -> None:
        self._recipe = recipe

    def measure(self, arm: Arm, repetition: int) -> Measured:
        settings = settings_of(self._recipe, arm)
        assert isinstance(settings, WireSettings)
        found = measure_wire(settings, _quiet)
        return msgspec.structs.replace(found, settings=msgspec.to_builtins(settings))


def _known(model: ModelFile) -> dict[str, Any]:
    """Fingerprints leave out what makes no difference to answers; a file's hash is of all of it."""
    try:
        fingerprint = msgspec.to_builtins(fingerprint_model(model.path))
    except HeteroError as error:
        fingerprint = {"error": str(error)}
    return {"name": model.path.name, "hash": model.hash, "fingerprint": fingerprint}


def _quiet(line: str) -> None:
    """The runner's own line says enough."""
