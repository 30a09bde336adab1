"""Other questions put to what was measured: figures, checks and plots of a changed recipe."""

from pathlib import Path

import msgspec

from hetero.errors import ConfigError
from hetero.experiment.outcome.result import FILE_NAME, Result
from hetero.experiment.recipe.load import load_recipe, recipe_hash
from hetero.experiment.recipe.recipe import Recipe

# What makes no difference to how anything is measured.
_ANSWERS = ("question", "figures", "checks", "plots", "caveats", "minutes")


def asked_anew(folder: Path, result: Result, recipe: Recipe) -> Result:
    """The result as a run of `recipe` would have it.

    Raises: ConfigError if that would have measured something else.
    """
    # From its file: there its inputs are found.
    measured = load_recipe(folder / FILE_NAME)
    answers = {name: getattr(recipe, name) for name in _ANSWERS}
    if recipe_hash(msgspec.structs.replace(measured, **answers)) != recipe_hash(recipe):
        raise ConfigError(
            f"{folder}: need a recipe that measures the same, have one that differs in "
            f"{', '.join(_different(measured, recipe))}; hetero run measures it"
        )
    return msgspec.structs.replace(
        result,
        recipe=msgspec.structs.replace(result.recipe, **answers),
        recipe_hash=recipe_hash(recipe),
    )


def _different(a: Recipe, b: Recipe) -> list[str]:
    if type(a) is not type(b):
        return ["kind"]
    fields = [name for name in a.__struct_fields__ if name not in _ANSWERS]
    return [name for name in fields if getattr(a, name) != getattr(b, name)] or ["its inputs"]
