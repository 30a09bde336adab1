"""The recipe file's JSON Schema, for editors: types and limits from the structs, descriptions from
their docstrings."""

import inspect
import re
from typing import Any

import msgspec

from hetero.experiment.recipe import figures, recipe

_FIELD = re.compile(r"(\w+): (.*)")


def json_schema() -> dict[str, Any]:
    """Draft 2020-12."""
    (either,), parts = msgspec.json.schema_components(
        (recipe.Recipe,), ref_template="#/$defs/{name}"
    )
    structs = vars(figures) | vars(recipe)
    for name, part in parts.items():
        summary, fields = described(structs[name])
        part["description"] = summary
        for field, text in fields.items():
            part["properties"][field]["description"] = text
    for kind in (recipe.Serving, recipe.Quality, recipe.Wire):
        settings = parts[kind.__name__]["properties"]["settings"]["$ref"].rpartition("/")[2]
        _name_settings(parts[kind.__name__]["properties"]["vary"], structs[settings])
    _name_settings(parts["Candidate"]["properties"]["settings"], recipe.Settings)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of hetero",
        **either,
        "$defs": parts,
    }


def described(kind: type[msgspec.Struct]) -> tuple[str, dict[str, str]]:
    """A struct's docstring without its fields, and its fields' descriptions, those it inherits
    first. A line that goes on is indented."""
    summary: list[str] = []
    fields: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        summary, field = [], None
        if not issubclass(each, msgspec.Struct):
            continue
        for line in inspect.cleandoc(vars(each).get("__doc__") or "").splitlines():
            match = _FIELD.fullmatch(line)
            if match is not None and match[1] in kind.__struct_fields__:
                field = match[1]
                fields[field] = match[2]
            elif field is not None and line.startswith(" "):
                fields[field] += f" {line.strip()}"
            else:
                field = None
                summary.append(line)
    return " ".join(" ".join(summary).split()), fields


def _name_settings(part: dict[str, Any], kind: type[msgspec.Struct]) -> None:
    part["propertyNames"] = {"enum": list(kind.__struct_fields__)}
