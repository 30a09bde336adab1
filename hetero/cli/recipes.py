"""`hetero recipes`: which experiments there are, and whether a recipe is sound."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hetero.cli.output import AsJson, print_json, print_progress

if TYPE_CHECKING:
    from hetero.experiment.recipe.recipe import Recipe

app = typer.Typer(add_completion=False)

_BAD_CONFIG = 2


@app.command()
def recipes(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE", help="To check: names, recipe files, results.", show_default=False
        ),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of recipes, for editors.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the recipes in ./recipes, or else those that hetero brings; or check what is named."""
    from hetero.experiment.recipe.found import recipe_files

    if schema:
        from hetero.experiment.recipe.schema import json_schema

        print(json.dumps(json_schema(), indent=None if as_json else 2))
        return
    entries = [_entry(name) for name in names or map(str, recipe_files(Path.cwd()))]
    if as_json:
        print_json({"recipes": entries})
    elif names:
        for entry in entries:
            if not entry["errors"]:
                print(f"{entry['file']}: ok")
    else:
        _print_table([entry for entry in entries if not entry["errors"]])
    for problem in (problem for entry in entries for problem in entry["errors"]):
        print_progress(f"hetero: error: {problem}")
    if any(entry["errors"] for entry in entries):
        raise typer.Exit(_BAD_CONFIG)


def _entry(name: str) -> dict[str, Any]:
    from hetero.errors import ConfigError
    from hetero.experiment.recipe.found import find_recipe
    from hetero.experiment.recipe.load import load_recipe

    try:
        path = find_recipe(name, Path.cwd())
        return {"file": str(path), "errors": [], **_summary(load_recipe(path))}
    except ConfigError as error:
        return {"file": name, "errors": str(error).split("\n")}


def _summary(recipe: "Recipe") -> dict[str, Any]:
    from hetero.experiment.recipe.arms import num_arms
    from hetero.experiment.recipe.load import recipe_hash

    return {
        "name": recipe.name,
        "kind": recipe.__struct_config__.tag,
        "question": recipe.question,
        "arms": num_arms(recipe),
        "repetitions": recipe.repetitions,
        "minutes": recipe.minutes,
        "needs_root": _needs_root(recipe),
        "hash": recipe_hash(recipe),
    }


def _needs_root(recipe: "Recipe") -> bool:
    """For a lab: the recipe's own, or that of a wire."""
    from hetero.experiment.recipe.recipe import Serving, Wire

    return isinstance(recipe, Wire) or (
        isinstance(recipe, Serving) and recipe.cluster.lab is not None
    )


def _print_table(entries: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    if not entries:
        print_progress("recipes: none here; docs/recipes.md says how to write one")
        return
    table = Table("recipe", "kind", "arms", "minutes", "needs", "question", box=None)
    for entry in entries:
        minutes = "-" if entry["minutes"] is None else f"{entry['minutes']:g}"
        arms = f"{entry['arms']} x {entry['repetitions']}"
        needs = "root" if entry["needs_root"] else "-"
        table.add_row(entry["name"], entry["kind"], arms, minutes, needs, entry["question"])
    Console().print(table)
