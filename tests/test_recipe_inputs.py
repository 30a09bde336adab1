"""Files a recipe names: kept with its results, found there again, known by what is in them."""

import shutil
from pathlib import Path

import msgspec
import pytest
from recipe_examples import changed

from hetero.errors import ConfigError
from hetero.experiment.recipe.inputs import INPUTS, keep_inputs
from hetero.experiment.recipe.load import load_recipe, parse_recipe, recipe_hash

TRACE_LINE = '{"timestamp": %d, "input_length": 40, "output_length": 4, "hash_ids": [%d]}\n'
WRITINGS = {
    "path": "day.jsonl",
    "path and keys": "day.jsonl,speed=2",
    "key": "trace=day.jsonl,speed=2",
    "mapping": {"trace": "day.jsonl", "speed": 2},
    "file of keys": "loads/fast.yaml",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to stand in, with a trace, a file of keys that names it, and two texts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "day.jsonl").write_text("".join(TRACE_LINE % (1000 * n, n) for n in range(9)))
    (tmp_path / "loads").mkdir()
    (tmp_path / "loads" / "fast.yaml").write_text("trace: ../day.jsonl\nspeed: 2\n")
    (tmp_path / "a.txt").write_text("one " * 100)
    (tmp_path / "loads" / "b.txt").write_text("two " * 100)
    return tmp_path


def result_in(folder, recipe):
    """As a run leaves it, as far as rerunning needs it."""
    folder.mkdir()
    kept = keep_inputs(recipe, folder)
    (folder / "result.json").write_bytes(msgspec.json.encode({"recipe": kept}))
    return kept


@pytest.mark.parametrize("load", WRITINGS.values(), ids=WRITINGS)
def test_a_moved_result_has_its_trace(here, load, monkeypatch):
    recipe = parse_recipe(changed("load", load))
    digest = recipe_hash(recipe)
    result_in(here / "result", recipe)
    moved = here / "elsewhere" / "moved"
    moved.parent.mkdir()
    shutil.move(here / "result", moved)
    (here / "day.jsonl").unlink()
    monkeypatch.chdir(moved.parent)
    again = load_recipe(moved / "result.json")
    assert recipe_hash(again) == digest
    assert again.load["trace"] == str(moved / INPUTS / "day.jsonl")
    assert again.load.get("speed", 1) in (1, 2, "2")
    # And the result of that is the same again.
    second = result_in(moved.parent / "second", again)
    assert second.load["trace"] == "inputs/day.jsonl"
    assert recipe_hash(load_recipe(moved.parent / "second" / "result.json")) == digest


def test_a_moved_result_has_its_texts(here):
    recipe = parse_recipe(changed("texts", ["a.txt", "loads/b.txt"], "kv-quality"))
    result_in(here / "result", recipe)
    (here / "a.txt").unlink()
    (here / "loads" / "b.txt").unlink()
    again = load_recipe(here / "result" / "result.json")
    assert [Path(text).read_text()[:4] for text in again.texts] == ["one ", "two "]


def test_the_load_beside_has_its_trace_too(here):
    fields = changed("beside", "day.jsonl")
    fields["settings"]["beside_rate"] = 0.1
    kept = result_in(here / "result", parse_recipe(fields))
    assert kept.beside == {"trace": "inputs/day.jsonl"}
    assert (here / "result" / "inputs" / "day.jsonl").is_file()


def test_the_hash_is_of_what_is_in_a_file_not_of_where_it_lies(here):
    def digest(load):
        return recipe_hash(parse_recipe(changed("load", load)))

    first = digest("day.jsonl")
    shutil.copy(here / "day.jsonl", here / "loads" / "day.jsonl")
    assert digest("loads/day.jsonl") == first
    with open(here / "day.jsonl", "a") as trace:
        trace.write(TRACE_LINE % (9000, 9))
    assert digest("day.jsonl") != first


def test_keys_in_a_file_count_as_if_they_stood_there(here):
    (here / "hand.yaml").write_text("prompt: 64\noutput: 8\n")
    by_file = parse_recipe(changed("load", "hand.yaml"))
    by_hand = parse_recipe(changed("load", {"name": "hand", "prompt": 64, "output": 8}))
    assert recipe_hash(by_file) == recipe_hash(by_hand)
    assert result_in(here / "result", by_file).load == by_hand.load
    assert not (here / "result" / INPUTS).exists()


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        (["a.txt", "gone.txt"], "gone.txt: need a file, have none there"),
        (
            ["a.txt", "loads/a.txt"],
            "loads/a.txt: need files of different names, to keep both in a result, have a.txt",
        ),
    ],
)
def test_inputs_that_can_not_be_kept_are_refused(here, texts, complaint):
    shutil.copy(here / "loads" / "b.txt", here / "loads" / "a.txt")
    with pytest.raises(ConfigError, match=complaint):
        parse_recipe(changed("texts", texts, "kv-quality"))
