"""docs/recipes.md has every field, every metric, and an example that is sound."""

import json
import re
from pathlib import Path

import msgspec
import pytest
import yaml
from recipe_examples import check_as_a_run_would

from hetero.experiment.recipe import figures, recipe
from hetero.experiment.recipe.arms import num_arms
from hetero.experiment.recipe.load import parse_recipe
from hetero.experiment.recipe.metrics import METRICS
from hetero.experiment.recipe.schema import described, json_schema

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()
STRUCTS = [(vars(figures) | vars(recipe))[name] for name in json_schema()["$defs"]]


def field_rows(kind):
    texts = described(kind)[1]
    for field in msgspec.structs.fields(kind):
        is_shown = isinstance(field.default, str | int | float) and field.default != ""
        default = f"`{json.dumps(field.default)}`" if is_shown else ""
        default = "required" if field.required else default
        yield f"| `{field.name}` | {default} | {texts[field.name]} |"


def metric_rows(kind):
    for name, metric in METRICS[kind].items():
        ends = "_p95 ..." if metric.sampled else ""
        yield f"| `{name}{ends}` | {metric.unit} | {metric.better or ''} | {metric.label} |"


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
def test_every_field_is_there(kind):
    lines = PAGE.splitlines()
    assert [row for row in field_rows(kind) if row not in lines] == []


@pytest.mark.parametrize("kind", METRICS)
def test_every_metric_is_there(kind):
    _, _, section = PAGE.partition(f"\n`{kind}`:\n")
    table = section.strip().partition("\n\n")[0].splitlines()[2:]
    rows = [row for row in table if not row.startswith("| `NODE_cores`")]
    assert rows == list(metric_rows(kind))


def test_the_example_is_sound():
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    found = parse_recipe(yaml.safe_load(example))
    assert num_arms(found) == 6
    check_as_a_run_would(found)
