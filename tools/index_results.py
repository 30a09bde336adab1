"""results/README.md from what recipes gave: python tools/index_results.py [--check]

The last two runs of each recipe side by side. --check: ends with 1 if the file says something else.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from hetero.experiment.outcome.agreement import Compared, compare
from hetero.experiment.outcome.result import FILE_NAME, Result, is_result, read_result
from hetero.experiment.recipe.recipe import Quality

RESULTS = Path(__file__).parent.parent / "results"
INDEX = RESULTS / "README.md"
RECIPES = RESULTS.parent / "recipes"

HEAD = """# Results

What each [recipe](../recipes/) gave in its last two runs, from one command each:
`hetero run RECIPE`. Figures are with 95% intervals: "below 1 throughout" says that the
whole interval is, *inconclusive* that it is wider than 10% of its figure, so that the direction may
be sure and the size is not. Two runs agree if the interval of their difference contains 0. Each
folder holds the report with plots, every request, and all it takes to run it again:
`hetero run results/RECIPE/FOLDER/result.json`. [How we measure](../docs/methodology.md), [what was
tried](LOG.md). Written by `tools/index_results.py`.
"""


FOOT = """## Benchmarks

`hetero bench engine|kernels|wire|profile -o FILE` wrote what is in [engine_bench](engine_bench/),
[kernel_bench](kernel_bench/), [wire_bench](wire_bench/) and [profile_bench](profile_bench/);
`tools/check_load_generator.py` what is in [load](load/).
"""


def main() -> None:
    text = index_text()
    if "--check" in sys.argv[1:]:
        sys.exit(0 if INDEX.read_text() == text else 1)
    INDEX.write_text(text)


def index_text() -> str:
    measured = list(recipes())
    lines = [line for recipe in measured for line in section(recipe)]
    return "\n".join([HEAD, *lines, *not_run({runs[-1][1].recipe.name for runs in measured}), FOOT])


def recipes() -> Iterator[list[tuple[Path, Result]]]:
    """Of each recipe its last two runs, the earlier first."""
    for folder in sorted(RESULTS.iterdir()):
        files = [path for path in folder.glob(f"*/{FILE_NAME}") if is_result(path)]
        runs = sorted(((path.parent, read_result(path)) for path in files), key=began)
        if runs:
            yield runs[-2:]


def began(run: tuple[Path, Result]) -> str:
    return run[1].began


def section(runs: list[tuple[Path, Result]]) -> Iterator[str]:
    result = runs[-1][1]
    yield f"## {result.recipe.name}\n"
    yield f"{result.recipe.question}\n"
    if result.emulated:
        yield f"**EMULATED: {', '.join(result.emulated)}.**\n"
    links = [f"[{run.ended[:16].replace('T', ' ')}]({link(path)})" for path, run in runs]
    if len(runs) == 1:
        yield f"| | {links[0]} |\n|---|---|"
        for figure in result.figures:
            yield f"| {figure.says} | {figure.line} |"
    else:
        yield f"| | {links[0]} | {links[1]} | agree |\n|---|---|---|---|"
        for row in compare(runs[0][1], result):
            yield f"| {row.says} | {row.a} | {row.b} | {verdict(row)} |"
    if isinstance(result.recipe, Quality) and len(runs) == 2:
        yield (
            "\nNothing here is timed, and both runs had the same seeds: equal digits show that a "
            "run can be repeated, not that another model would agree."
        )
    held = sum(check.held for _, run in runs for check in run.checks)
    count = sum(len(run.checks) for _, run in runs)
    of = "runs" if len(runs) == 2 else "run"
    yield f"\nOn {result.machine}; {held} of {count} checks held ({len(runs)} {of}). Caveats:\n"
    yield from (f"- {caveat}" for caveat in result.recipe.caveats)
    yield ""


def not_run(measured: set[str]) -> Iterator[str]:
    names = sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem not in measured)
    if names:
        yield f"No run of {', '.join(names)} is committed yet.\n"


def link(folder: Path) -> str:
    return f"{folder.relative_to(RESULTS)}/report.md"


def verdict(row: Compared) -> str:
    return {True: "yes", False: "**no**", None: "can't be told"}[row.agree]


if __name__ == "__main__":
    main()
