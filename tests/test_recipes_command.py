"""`hetero recipes`, as users run it."""

import json
import subprocess
import sys

import pytest
from recipe_examples import EXAMPLES

from hetero.errors import ConfigError
from hetero.experiment.recipe.found import find_recipe, recipe_files
from hetero.experiment.recipe.load import load_recipe, recipe_hash

SERVING, WIRE = (
    next(path for path in EXAMPLES if path.stem == stem) for stem in ("serving", "kv-wire")
)


def hetero(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "hetero", "recipes", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={"PYTHONPATH": str(SERVING.parents[2]), "COLUMNS": "120"},
    )


@pytest.fixture
def project(tmp_path):
    (tmp_path / "recipes").mkdir()
    for path in EXAMPLES:
        (tmp_path / "recipes" / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_recipes_of_the_project_are_listed(project):
    run = hetero(cwd=project)
    assert run.returncode == 0, run.stderr
    header, *rows = run.stdout.splitlines()
    assert header.split() == ["recipe", "kind", "arms", "minutes", "needs", "question"]
    assert [row.split()[:7] for row in rows] == [
        ["example-quality", "kv-quality", "6", "x", "1", "-", "-"],
        ["example-wire", "kv-wire", "2", "x", "5", "-", "root"],
        # single 2, split and emulated 4 each, llama-server 1
        ["example-serving", "serving", "11", "x", "3", "4.5", "root"],
    ]
    assert rows[1].rstrip().endswith("What does sealing cost?")


def test_the_list_as_json(project):
    run = hetero("--json", cwd=project)
    (entry,) = (
        each for each in json.loads(run.stdout)["recipes"] if each["name"] == "example-wire"
    )
    assert entry == {
        "file": str(project / "recipes" / "kv-wire.yaml"),
        "errors": [],
        "name": "example-wire",
        "kind": "kv-wire",
        "question": "What does sealing cost?",
        "arms": 2,
        "repetitions": 5,
        "minutes": None,
        "needs_root": True,
        "hash": recipe_hash(load_recipe(WIRE)),
    }


def test_files_are_checked(project):
    bad = project / "bad.yaml"
    bad.write_text(WIRE.read_text().replace("tokens: 512", "token: 512"))
    run = hetero("kv-wire", bad, SERVING, cwd=project)
    assert run.returncode == 2
    assert run.stdout.splitlines() == [
        f"{project}/recipes/kv-wire.yaml: ok",
        f"{SERVING}: ok",
    ]
    assert run.stderr == (
        f"hetero: error: {bad}: settings.token: no such setting; did you mean tokens?\n"
    )
    run = hetero(bad, "--json", cwd=project)
    assert run.returncode == 2
    (entry,) = json.loads(run.stdout)["recipes"]
    assert entry == {
        "file": str(bad),
        "errors": [f"{bad}: settings.token: no such setting; did you mean tokens?"],
    }


def test_a_recipe_is_found_by_name(project, monkeypatch):
    assert find_recipe("kv-wire", project) == project / "recipes" / "kv-wire.yaml"
    assert [path.stem for path in recipe_files(project)] == ["kv-quality", "kv-wire", "serving"]
    with pytest.raises(ConfigError) as error:
        find_recipe("kv-wir", project)
    assert str(error.value) == (
        "recipe kv-wir: no such file, and no recipe called so; did you mean kv-wire?"
    )
