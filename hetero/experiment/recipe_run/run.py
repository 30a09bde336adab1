"""A recipe from its file to its results: `hetero run`."""

from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from hetero.experiment.outcome.finish import finish
from hetero.experiment.outcome.result import Result
from hetero.experiment.recipe.arms import arms_of, plan_order
from hetero.experiment.recipe.inputs import keep_inputs
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
from hetero.profile.ceilings.measure import measure_ceilings
from hetero.profile.facts.collect import collect_facts
from hetero.profile.facts.report import Facts
from hetero.profile.node.cores import engine_cpus
from hetero.profile.node_profile import Ceilings
from hetero.profile.provenance import provenance

# Enough to tell one machine from another; `hetero profile node` says it better.
_CEILINGS_S = 5.0
_CEILINGS_BYTES = 2 * 2**30


def run_recipe(
    recipe: Recipe, results: Path, say: Say, *, busy: bool = False, fresh: bool = False
) -> tuple[Path, Result]:
    """The folder below `results`, and what it holds then. An interrupted run of the same recipe on
    the same machine goes on, unless `fresh`. busy: also beside other programs.

    Raises: HeteroError if it can't go on; what was measured is kept, and the next call goes on.
    """
    if not busy:
        check_quiet()
    facts = collect_facts()
    folder = _folder(recipe, results / recipe.name, say, fresh=fresh)
    with closing(folder), ExitStack() as stack:
        kept = keep_inputs(recipe, folder.path)
        opened = stack.enter_context(open_bench(recipe, folder, say))
        if not folder.header.profiles:
            ceilings = _ceilings(facts)
            folder.keep_profiles({"ceilings": msgspec.to_builtins(ceilings)})
        order = plan_order(arms_of(recipe), recipe.repetitions, recipe.seed)
        with Pilots(opened.cpus) as pilots:
            marks = ["measured although other programs may have run (--busy)"] if busy else []
            run_arms(order, opened.bench, pilots, folder, say, marks)
    header = folder.header
    result = Result(
        recipe=kept,
        recipe_hash=header.recipe_hash,
        began=folder.runs[0].started,
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine_label(header.provenance),
        model=opened.model,
        provenance=header.provenance,
        facts=msgspec.to_builtins(facts),
        seeds={"load and order": recipe.seed},
        calibration=header.calibration,
        profiles=header.profiles,
        arms=folder.runs,
    )
    result = finish(folder.path, result, say)
    folder.finished()
    return folder.path, result


def _folder(recipe: Recipe, root: Path, say: Say, *, fresh: bool) -> RunFolder:
    now = provenance()
    digest = recipe_hash(recipe)
    found = None if fresh else unfinished_folder(root, digest, now["machine"])
    if found is not None:
        folder = RunFolder(found)
        if _is_same_code(folder.header.provenance, now):
            say(f"{found}: going on with this run")
            return folder
        folder.close()
        say(f"{found}: left as it is, since it was begun with other versions; beginning anew")
    header = RunHeader(recipe=msgspec.to_builtins(recipe), recipe_hash=digest, provenance=now)
    return make_folder(root, f"{now['date'][:10]}_{machine_label(now)}", header)


def _is_same_code(then: dict[str, Any], now: dict[str, Any]) -> bool:
    """And system. Of a checkout with changes nobody knows: two of them may be anything."""
    if (then["commit"] or "").endswith("+"):
        return False
    same = all(then[key] == now[key] for key in ("commit", "versions"))
    return same and then["machine"]["system"] == now["machine"]["system"]


def _ceilings(facts: Facts) -> Ceilings:
    return measure_ceilings(
        numa=engine_cpus(facts),
        folder=None,  # no arm waits for a disk, and its path is nobody's business
        seconds=_CEILINGS_S,
        max_bytes=_CEILINGS_BYTES,
        say=lambda line: None,
    )
