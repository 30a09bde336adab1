"""docs/recipes.md has every field, every metric, and an example that is sound."""

import json
import re
from pathlib import Path

import msgspec
import pytest
import yaml
from recipe_examples import check_as_a_run_would

from hetero.experiment.deploy.model_files import file_hash
from hetero.experiment.recipe import figures, recipe
from hetero.experiment.recipe.arms import num_arms
from hetero.experiment.recipe.load import parse_recipe
from hetero.experiment.recipe.metrics import METRICS
from hetero.experiment.recipe.schema import described, json_schema
from hetero.workload.named import load_workload

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


def examples():
    return [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]


def test_the_first_example_is_sound():
    found = parse_recipe(examples()[0])
    assert num_arms(found) == 6
    check_as_a_run_would(found)


def test_the_example_of_a_users_own_model_and_traffic_is_sound(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "MODEL.gguf"
    model.write_bytes(b"GGUF")
    lines = ({"timestamp": 1000 * s, "input_length": 9, "output_length": 2} for s in range(5000))
    (tmp_path / "traffic.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    example = examples()[1]
    example["model"]["hash"] = file_hash(model)
    found = parse_recipe(example)
    assert num_arms(found) == 2
    assert load_workload(found.load).draw(0).num_requests == 600
