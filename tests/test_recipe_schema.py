"""The JSON Schema that editors read: current, described, and as strict as hetero is."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from recipe_examples import EXAMPLES, changed, check_as_a_run_would

from hetero.cli.main import main
from hetero.experiment.recipe.load import load_recipe
from hetero.experiment.recipe.schema import json_schema

ROOT = Path(__file__).parents[1]
COMMITTED = sorted((ROOT / "recipes").glob("*.yaml"))
SCHEMA = json_schema()


def test_the_committed_one_is_current():
    """If not: hetero recipes --schema > recipes/recipe.schema.json"""
    assert json.loads((ROOT / "recipes" / "recipe.schema.json").read_text()) == SCHEMA


def test_the_command_prints_it(capsys):
    assert main(["recipes", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA


def test_everything_in_it_is_described():
    for name, part in SCHEMA["$defs"].items():
        assert part["description"], name
        assert part["additionalProperties"] is False, name
        for field, described in part["properties"].items():
            assert field == "kind" or described.get("description"), f"{name}.{field}"


def test_a_description_is_the_docstrings():
    lab = SCHEMA["$defs"]["Lab"]
    assert lab["description"].startswith("Hosts here, each a namespace, joined by one cable")
    assert lab["properties"]["rate"]["description"] == (
        "of the cables between hosts, 5mbit to 40gbit, where neither `link_rate` nor `wire_ratio` "
        "of the settings says otherwise"
    )
    # Inherited.
    assert SCHEMA["$defs"]["Wire"]["properties"]["question"]["description"] == "a sentence"


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_every_committed_recipe_is_sound(path):
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize("path", [*EXAMPLES, *COMMITTED], ids=lambda path: path.stem)
def test_a_run_takes_what_was_found_sound(path):
    check_as_a_run_would(load_recipe(path))


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return jsonschema.Draft202012Validator(SCHEMA)


@pytest.mark.parametrize("path", [*EXAMPLES, *COMMITTED], ids=lambda path: path.stem)
def test_recipes_are_valid_by_it(validator, path):
    validator.validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("kind", "kv-speed"),
        ("name", "Not a name"),
        ("question", "-"),
        ("vary.concurency", [1]),
        ("vary.kv", []),
        ("settings.threads", 0),
        ("settings.treads", 1),
        ("candidates.split.settings.treads", 1),
        ("candidates.split.decode", "main"),
        ("figures.gain.of", "-"),
        ("figures.gain.kind", "mean"),
        ("cluster.lab.hosts.back.memory", "2g"),
        ("plots.0.y", []),
    ],
)
def test_an_editor_sees_what_hetero_refuses(validator, place, value):
    assert not validator.is_valid(changed(place, value))


def test_an_installed_package_brings_recipes(tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    ignored = shutil.ignore_patterns("__pycache__", "*.gguf")
    shutil.copytree(ROOT / "hetero", tmp_path / "hetero", ignore=ignored)
    installed = tmp_path / included["recipes"]
    shutil.copytree(ROOT / "recipes", installed)
    shutil.copy(EXAMPLES[0], installed / "brought.yaml")
    code = (
        "from pathlib import Path; from hetero.experiment.recipe.found import recipe_files; "
        "print(*recipe_files(Path.cwd()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert str(installed / "brought.yaml") in run.stdout.split()
    assert len(run.stdout.split()) == len(COMMITTED) + 1
