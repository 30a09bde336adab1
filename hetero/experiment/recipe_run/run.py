"""A recipe from its file to its results: `hetero run`."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from hetero.errors import HeteroError
from hetero.experiment.outcome.finish import finish
from hetero.experiment.outcome.result import Result
from hetero.experiment.recipe.arms import arms_of, plan_order
from hetero.experiment.recipe.load import recipe_hash
from hetero.experiment.recipe.recipe import Recipe
from hetero.experiment.recipe_run.benches import open_bench
from hetero.experiment.recipe_run.busy import check_quiet
from hetero.experiment.recipe_run.pilots import Pilots
from hetero.experiment.recipe_run.run_folder import (
    RunFolder,
    RunHeader,
    machine_label,
    make_folder,
    unfinished_folder,
)
from hetero.experiment.recipe_run.runner import Say, run_arms
from hetero.profile.facts.collect import collect_facts
from hetero.profile.provenance import provenance


def run_recipe(
    recipe: Recipe, results: Path, say: Say, *, busy: bool = False, fresh: bool = False
) -> tuple[Path, Result]:
    """The folder below `results`, and what it holds then. An interrupted run of the same recipe on
    the same machine goes on, unless `fresh`. busy: also beside other programs.

    Raises: HeteroError if it can't go on; what was measured is kept, and the next call goes on.
    """
    if not busy:
        check_quiet()
    folder = _folder(recipe, results / recipe.name, say, fresh=fresh)
    try:
        with open_bench(recipe, folder, say) as (bench, cpus, model), Pilots(cpus) as pilots:
            order = plan_order(arms_of(recipe), recipe.repetitions, recipe.seed)
            run_arms(order, bench, pilots, folder, say)
    finally:
        folder.close()
    header = folder.header
    result = Result(
        recipe=recipe,
        recipe_hash=header.recipe_hash,
        complete=True,
        began=folder.runs[0].started,
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine_label(header.provenance),
        model=model,
        provenance=header.provenance,
        facts=msgspec.to_builtins(collect_facts()),
        seeds={"load and order": recipe.seed},
        calibration=header.calibration,
        profiles=header.profiles,
        arms=folder.runs,
    )
    return folder.path, finish(folder.path, result, say)


def _folder(recipe: Recipe, root: Path, say: Callable[[str], None], *, fresh: bool) -> RunFolder:
    now = provenance()
    digest = recipe_hash(recipe)
    found = None if fresh else unfinished_folder(root, digest, now["machine"])
    if found is not None:
        folder = RunFolder(found)
        then = folder.header.provenance
        if (then["commit"], then["versions"]) == (now["commit"], now["versions"]):
            say(f"{found}: going on with this run")
            return folder
        folder.close()
        say(f"{found}: left as it is, since it was begun with other versions; beginning anew")
    header = RunHeader(recipe=msgspec.to_builtins(recipe), recipe_hash=digest, provenance=now)
    name = f"{now['date'][:10]}_{machine_label(now)}"
    try:
        return make_folder(root, name, header)
    except OSError as error:
        raise HeteroError(f"{root}: can't write: {error.strerror or error}") from None
