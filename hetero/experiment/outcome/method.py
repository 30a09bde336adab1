"""How a result was measured, as sentences for its report."""

from collections.abc import Iterator
from statistics import median
from typing import Any

from hetero.experiment.outcome.arm_run import ArmRun
from hetero.experiment.outcome.bootstrap import RESAMPLES
from hetero.experiment.outcome.figure_result import MAX_WIDTH
from hetero.experiment.outcome.result import Result
from hetero.experiment.outcome.steadiness import (
    MOST_UNSTEADY,
    slowdown,
    unsteadiness,
    usual_pilot,
)
from hetero.experiment.outcome.units import number_text, quantity_text
from hetero.experiment.recipe.arms import arm_text
from hetero.experiment.recipe.recipe import Serving

# Lines of one kind, before the rest is counted.
_MAX_LINES = 8


def method_lines(result: Result) -> Iterator[str]:
    recipe = result.recipe
    yield _machine(result)
    yield _model(result)
    yield f"Code: commit {result.provenance.get('commit') or 'unknown'}; {_versions(result)}."
    seeds = ", ".join(f"{name} {seed}" for name, seed in result.seeds.items())
    yield (
        f"Recipe `{recipe.name}`, hash `{result.recipe_hash[:16]}`; seeds: {seeds or recipe.seed}."
    )
    yield f"Measured from {result.began} to {result.ended}."
    if isinstance(recipe, Serving) and recipe.slo:
        yield f"Goodput counts the requests that met `{recipe.slo}`."
    if result.calibration:
        yield _calibration(result.calibration)
    plural = "s" if recipe.repetitions > 1 else ""
    yield (
        f"{recipe.repetitions} repetition{plural} of each arm, the arms in turns, so that what "
        "lasts longer than a turn falls on all of them alike."
    )
    yield _intervals(recipe.repetitions)
    yield (
        f"*Inconclusive*: an interval wider, from end to end, than {MAX_WIDTH:.0%} of its value; "
        "or, of what is best, no place where one is better than all others. Comparisons are judged "
        "one by one: of twenty between equals, about one finds a better one by chance."
    )
    yield from _steadiness(result)
    yield from _overhead(result.arms)
    yield from _two_clocks(result.arms)
    yield from _marks(result.arms)


def _machine(result: Result) -> str:
    about: dict[str, Any] = result.provenance.get("machine", {})
    parts = [str(about["cpu"])] if about.get("cpu") else []
    if about.get("cores"):
        parts.append(f"{about['cores']} cores")
    if about.get("memory_bytes"):
        parts.append(f"{about['memory_bytes'] / 2**30:.0f} GiB")
    if about.get("system"):
        parts.append(str(about["system"]))
    return f"Machine: {result.machine}" + (f" ({', '.join(parts)})." if parts else ".")


def _model(result: Result) -> str:
    digest = result.model.get("hash")
    known = f", blake3 `{digest}`" if digest else ""
    return f"Model: {result.model.get('name', 'none')}{known}."


def _versions(result: Result) -> str:
    versions = result.provenance.get("versions", {})
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _calibration(measured: dict[str, float]) -> str:
    """By its name and what it is of, as `kv_bytes_per_s q8_0`."""
    parts = []
    for name, value in measured.items():
        what, _, of = name.partition(" ")
        if what == "kv_bytes_per_s":
            parts.append(f"prefill yields {quantity_text(8 * value, 'bit/s')} of KV, {of}")
        else:
            parts.append(f"{name} {number_text(value)}")
    return f"Measured once, for all arms that it is of: {', '.join(parts)}."


def _intervals(repetitions: int) -> str:
    if repetitions < 2:
        return "One repetition: there are no intervals, and nothing says what is chance."
    return (
        f"In parentheses: 95% intervals by bootstrap, {RESAMPLES} resamples. Repetitions are "
        "resampled, and the result widened for their small number (sqrt(n / (n - 1)), and "
        "Student's t over 1.96); requests within each repetition are resampled as well, each with "
        "all that it gave; the wider of the two counts. Several repetitions are one number by "
        "their geometric mean, where all are positive. Ratios are taken repetition by repetition."
    )


def _steadiness(result: Result) -> Iterator[str]:
    usual_s = usual_pilot([*result.arms, *result.dropped])
    if usual_s:
        slowdowns = [slowdown(run, usual_s) for run in result.arms]
        disturbed = sum(each > MOST_UNSTEADY for each in slowdowns)
        yield (
            "A fixed piece of work before and after each arm shows whether the machine had its "
            f"usual speed: of {len(slowdowns)} runs that count, {disturbed} were more than "
            f"{MOST_UNSTEADY:.0%} off it, {max(slowdowns):.1%} at most."
        )
    steals = [run.steal_share for run in result.arms if run.steal_share is not None]
    if steals:
        yield f"Other guests of this machine took {max(steals):.1%} of its time at most meanwhile."
    if result.dropped:
        yield from _some(
            f"Attempts that a steadier one replaced, {len(result.dropped)}",
            [
                f"{arm_text(run.arm)}, repetition {run.repetition + 1} "
                f"({unsteadiness(run, usual_s):.1%} off)"
                for run in result.dropped
            ],
        )


def _overhead(runs: list[ArmRun]) -> Iterator[str]:
    for key, who in (("load_cores", "load generator"), ("router_cores", "router")):
        cores = [run.scalars[key] for run in runs if key in run.scalars]
        if cores:
            yield (
                f"The {who} took {sum(cores) / len(cores):.3f} of a core on average, "
                f"{max(cores):.3f} at most."
            )


def _two_clocks(runs: list[ArmRun]) -> Iterator[str]:
    """What requests took by their clients' clocks and by the server's own. Clients see a little
    more: the way there and back."""
    parts = []
    for metric, what in (("ttft", "times to the first token"), ("tpot", "times between tokens")):
        differences = [
            abs(median(run.samples[metric]) / median(told) - 1)
            for run in runs
            if (told := run.samples.get(f"server_{metric}")) and median(told) > 0
        ]
        if differences:
            parts.append(f"{what} {median(differences):.2%} apart ({max(differences):.2%} at most)")
    if parts:
        yield f"By clients' clocks and by the servers' own, an arm's median {', '.join(parts)}."


def _marks(runs: list[ArmRun]) -> Iterator[str]:
    """Marks by what they say, with how many runs they are of."""
    counts: dict[str, int] = {}
    for run in runs:
        for mark in run.marks:
            counts[mark] = counts.get(mark, 0) + 1
    if counts:
        of = [f"{mark} ({count} of {len(runs)} runs)" for mark, count in counts.items()]
        yield from _some("To be known of single runs", of)


def _some(title: str, lines: list[str]) -> Iterator[str]:
    more = len(lines) - _MAX_LINES
    shown = "; ".join(lines[:_MAX_LINES])
    yield f"{title}: {shown}" + (f"; and {more} more." if more > 0 else ".")
