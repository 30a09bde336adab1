"""Small sound recipes, to be changed and refused."""

from copy import deepcopy
from pathlib import Path

import yaml

from hetero.errors import ConfigError
from hetero.experiment.recipe.load import parse_recipe

EXAMPLES = sorted((Path(__file__).parent / "example_recipes").glob("*.yaml"))
_FIELDS = {path.stem: yaml.safe_load(path.read_text()) for path in EXAMPLES}


def fields(kind="serving"):
    return deepcopy(_FIELDS[kind])


def changed(place, value, kind="serving"):
    """An example with something else at a dotted place, where "-" deletes what is there."""
    found = part = fields(kind)
    *way, last = [int(name) if name.isdigit() else name for name in place.split(".")]
    for name in way:
        part = part[name]
    if value == "-":
        del part[last]
    else:
        part[last] = value
    return found


def refusals(found):
    """The lines a user would see, none if it is sound."""
    try:
        parse_recipe(found)
    except ConfigError as error:
        return str(error).split("\n")
    return []
