"""`hetero results`: lists, shows, compares."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fake_runs import result_of, runs_of, serving

from hetero.cli import main
from hetero.experiment.outcome.agreement import compare
from hetero.experiment.outcome.finish import evaluated
from hetero.experiment.outcome.result import read_result, write_result
from hetero.experiment.recipe.load import recipe_hash

RATE = {
    "kind": "value",
    "says": "how fast",
    "metric": "throughput",
    "at": {"candidate": "single"},
}


def measured(values, split=(50, 50.1, 49.9), figures=None, **fields):
    recipe = serving(
        figures=figures or {"rate": RATE}, checks=[{"metric": "throughput", "at_least": 40}]
    )
    runs = runs_of({"candidate": "single"}, "throughput", values)
    runs += runs_of({"candidate": "split"}, "throughput", split)
    return evaluated(result_of(recipe, runs, **fields))


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def keep(name, result):
        folder = tmp_path / "results" / "fair-baseline" / name
        folder.mkdir(parents=True)
        write_result(folder, result)
        return f"results/fair-baseline/{name}"

    return keep


def call(capsys, *arguments):
    status = main.main(["results", *arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_results_are_listed_with_their_answers(kept, capsys, tmp_path):
    kept("2026-11-22_xeon", measured([100, 100.1, 99.9]))
    for other in ("engine_bench", "odd"):
        (tmp_path / "results" / other).mkdir()
    (tmp_path / "results" / "engine_bench" / "result.json").write_text('{"benchmark": "engine"}')
    (tmp_path / "results" / "odd" / "result.json").write_text("no JSON")
    status, out, err = call(capsys)
    assert (status, err) == (0, "")
    rows = [line for line in out.splitlines() if "fair-baseline" in line]
    assert len(rows) == 1
    for said in ("2026-11-22", "xeon-2-cores", "1 of 1", "100 tokens/s (", "2026-11-22_xeon"):
        assert said in rows[0]
    assert "engine_bench" not in out


def test_the_list_as_json(kept, capsys):
    folder = kept("a", measured([100, 100.1, 99.9]))
    _, out, _ = call(capsys, "--json")
    (entry,) = json.loads(out)["results"]
    assert entry["folder"] == folder
    assert (entry["checks_held"], entry["checks"]) == (1, 1)


def test_a_result_of_another_version_is_said_and_skipped(kept, capsys):
    kept("a", measured([100, 100.1, 99.9]))
    kept("b", msgspec.structs.replace(measured([1, 1, 1]), format=99))
    status, out, err = call(capsys)
    assert status == 0
    assert "skipped: results/fair-baseline/b/result.json: format: need 1, have 99" in err
    assert "results/fair-baseline/a" in out


def test_no_results_is_no_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, out, err = call(capsys)
    assert (status, out) == (0, "")
    assert "hetero run RECIPE makes one" in err


def test_another_directory_is_listed(kept, capsys, tmp_path):
    kept("a", measured([100, 100.1, 99.9]))
    (tmp_path / "results").rename(tmp_path / "elsewhere")
    assert "no result of a recipe below results" in call(capsys)[2]
    _, out, _ = call(capsys, "--results", "elsewhere")
    assert "elsewhere/fair-baseline/a" in out


def test_a_report_of_bench_is_called_one(kept, capsys, tmp_path):
    a = kept("a", measured([100, 100.1, 99.9]))
    (tmp_path / "load.json").write_text('{"benchmark": "URL", "points": []}')
    status, _, err = call(capsys, "compare", a, "load.json")
    assert status == 2
    assert "load.json: need the result of a recipe, have a report of `hetero bench URL`" in err


def test_show_prints_the_answer(kept, capsys):
    folder = kept("a", measured([100, 100.1, 99.9]))
    status, out, _ = call(capsys, "show", folder)
    assert status == 0
    assert out.startswith("Does it pay to split prefill and decode over two hosts?\n")
    assert "rate: 100 tokens/s (" in out
    assert "held: throughput at least 40 tokens/s in all 2 arms: 50.0 tokens/s" in out


def test_a_result_is_drawn_anew_from_what_was_measured(kept, capsys):
    result = measured([100, 100.1, 99.9])
    folder = kept("a", msgspec.structs.replace(result, figures=[], checks=[]))
    status, out, _ = call(capsys, "redraw", folder)
    assert (status, out) == (0, f"{folder}/report.md\n")
    assert "- **rate**: 100 tokens/s" in Path(folder, "report.md").read_text()
    assert read_result(Path(folder)) == result


def test_another_question_is_put_to_what_was_measured(kept, capsys, tmp_path):
    result = measured([100, 100.1, 99.9])
    folder = kept("a", result)
    fields = msgspec.to_builtins(result.recipe)
    ratio = {"kind": "ratio", "says": "how much faster", "metric": "throughput"}
    ends = {"of": {"candidate": "single"}, "to": {"candidate": "split"}}
    changed = fields | {"figures": {"twice": ratio | ends}, "checks": []}
    (tmp_path / "changed.json").write_bytes(msgspec.json.encode({"recipe": changed}))
    status, _, err = call(capsys, "redraw", folder, "--recipe", "changed.json")
    assert status == 0, err
    assert "- **twice**: 2" in Path(folder, "report.md").read_text()
    again = read_result(Path(folder))
    assert again.arms == result.arms
    assert again.recipe_hash == recipe_hash(again.recipe) != result.recipe_hash

    other = changed | {"repetitions": 7, "settings": {"slots": 2}}
    (tmp_path / "other.json").write_bytes(msgspec.json.encode({"recipe": other}))
    status, _, err = call(capsys, "redraw", folder, "--recipe", "other.json")
    assert status == 2
    assert "need a recipe that measures the same, have one that differs in" in err
    assert "repetitions, settings; hetero run measures it" in err
    assert read_result(Path(folder)) == again


def test_emulated_devices_are_named_before_any_number(kept, capsys):
    result = measured([100, 100.1, 99.9])
    marked = [msgspec.structs.replace(run, marks=["emulated: p40"]) for run in result.arms]
    folder = kept("a", msgspec.structs.replace(result, arms=marked))
    _, out, _ = call(capsys, "show", folder)
    assert out.splitlines()[1] == "EMULATED: p40"
    _, out, _ = call(capsys)
    assert "EMULATED; 100 tokens/s (" in out


def test_show_as_json(kept, capsys):
    folder = kept("a", measured([100, 100.1, 99.9]))
    _, out, _ = call(capsys, "show", folder, "--json")
    shown = json.loads(out)
    assert shown["figures"][0]["name"] == "rate"
    assert shown["checks"][0]["held"] is True


def test_show_of_what_is_not_there_is_bad_usage(kept, capsys):
    status, _, err = call(capsys, "show", "nowhere")
    assert status == 2
    assert "no such file or directory" in err


def test_two_runs_that_agree(kept, capsys):
    a, b = kept("a", measured([100, 101, 99])), kept("b", measured([100.5, 101.5, 99.5]))
    status, out, _ = call(capsys, "compare", a, b, "--check")
    assert status == 0
    assert "rate: how fast: agree" in out
    assert "1 of 1 figures agree" in out
    assert "warning" not in out


def test_two_runs_that_disagree(kept, capsys):
    a, b = kept("a", measured([100, 101, 99])), kept("b", measured([120, 121, 119]))
    status, out, _ = call(capsys, "compare", a, b)
    assert status == 0
    assert "rate: how fast: DISAGREE" in out
    status, out, _ = call(capsys, "compare", a, b, "--check", "--json")
    assert status == 1
    said = json.loads(out)
    assert said["agree"] is False
    assert said["figures"][0]["agree"] is False


def test_what_differs_besides_is_warned_of(kept, capsys):
    a = kept("a", measured([100, 101, 99]))
    other = measured(
        [100, 101, 99], machine="r730", model={"name": "demo", "hash": "00"}, recipe_hash="x" * 64
    )
    _, out, _ = call(capsys, "compare", a, kept("b", other))
    assert "warning: recipes differ" in out
    assert "warning: models differ" in out
    assert "warning: machines differ: xeon-2-cores (Intel Xeon), r730 (Intel Xeon)" in out


def agree(a, b):
    (row,) = compare(a, b)
    return row.agree


def test_intervals_that_just_overlap_are_a_disagreement():
    """Each reaches 2.48 towards the other: overlap up to 4.97 apart, agreement up to 3.5."""
    first = measured([100, 101, 99])
    reach = first.figures[0].high - first.figures[0].value
    assert agree(first, measured([100 + 1.3 * reach + each for each in (0, 1, -1)]))
    assert not agree(first, measured([100 + 1.7 * reach + each for each in (0, 1, -1)]))


def test_one_repetition_can_not_disagree():
    assert agree(measured([100], split=[50]), measured([200], split=[50])) is None


BEST = {"kind": "best", "says": "which", "metric": "throughput", "along": "concurrency"}
CROSSING = {
    "kind": "crossing",
    "says": "where",
    "metric": "throughput",
    "of": {"candidate": "split"},
    "to": {"candidate": "single"},
    "along": "concurrency",
}


def along(figure, *splits):
    """single at 10 everywhere; split as given, at 1, 2 ..."""
    places = list(range(1, len(splits) + 1))
    recipe = serving(figures={"it": figure}, vary={"concurrency": places})
    runs = []
    for place, values in zip(places, splits, strict=True):
        single = {"candidate": "single", "concurrency": place}
        runs += runs_of(single, "throughput", [10.0] * len(values))
        runs += runs_of(single | {"candidate": "split"}, "throughput", values)
    return evaluated(result_of(recipe, runs))


def test_a_tie_agrees_with_each_of_its_members():
    tie, split, single = ([9, 11, 10.5], [12, 12.1, 11.9], [8, 8.1, 7.9])
    assert agree(along(BEST, tie), along(BEST, split))
    assert agree(along(BEST, single), along(BEST, tie))
    assert not agree(along(BEST, single), along(BEST, split))


def test_crossings_that_were_not_found_agree_if_on_the_same_side():
    above = along(CROSSING, [12, 12, 12], [13, 13, 13])
    further = along(CROSSING, [15, 15, 15], [14, 14, 14])
    below = along(CROSSING, [8, 8, 8], [7, 7, 7])
    found = along(CROSSING, [8, 8, 8], [13, 13, 13])
    assert agree(above, further)
    assert not agree(above, below)
    assert not agree(above, found)
    assert agree(found, found)


def test_runs_of_the_same_thing_seldom_disagree():
    """One pair in twenty at most; runs of what differs by five times their scatter, nearly all."""
    generator = np.random.default_rng(0)
    same, apart = 0, 0
    for _ in range(100):
        a, b, c = (
            measured(list(centre * np.exp(generator.normal(0, 0.02, 5)))) for centre in (9, 9, 9.9)
        )
        same += agree(a, b)
        apart += not agree(a, c)
    assert same >= 94
    assert apart >= 94
