"""A result's folder: whole files, the answer first, and all it takes to run it again."""

import errno
import json
import os

import fake_runs
import msgspec
import pytest
from fake_runs import result_of, run, runs_of, serving

from hetero.errors import ConfigError, HeteroError
from hetero.experiment.outcome.arm_run import Pilot
from hetero.experiment.outcome.finish import evaluated, finish
from hetero.experiment.outcome.result import FORMAT, read_result, write_result
from hetero.experiment.recipe.load import load_recipe, recipe_hash


def silent(line):
    raise AssertionError(line)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "interconnect" / "2026-11-22_xeon"
    folder.mkdir(parents=True)
    recipe, runs = fake_runs.interconnect()
    finish(folder, result_of(recipe, runs), silent)
    return folder


def simple(**fields):
    recipe = serving(
        checks=[{"figure": "rate", "at_least": 90}],
        figures={
            "rate": {
                "kind": "value",
                "says": "how fast",
                "metric": "throughput",
                "at": {"candidate": "single"},
            }
        },
    )
    runs = runs_of({"candidate": "single"}, "throughput", [100, 100.1, 99.9])
    runs += runs_of({"candidate": "split"}, "throughput", [80, 120, 100])
    return result_of(recipe, runs, **fields)


def report(tmp_path, result):
    finish(tmp_path, result, silent)
    return (tmp_path / "report.md").read_text()


def test_a_result_reads_back_as_it_was_written(tmp_path):
    result = evaluated(simple())
    write_result(tmp_path, result)
    assert read_result(tmp_path) == result
    assert read_result(tmp_path / "result.json") == result


def test_the_recipe_comes_back_out_of_a_result(folder):
    """With the same hash: a folder alone is enough to run it again."""
    recipe, _ = fake_runs.interconnect()
    assert recipe_hash(load_recipe(folder / "result.json")) == recipe_hash(recipe)


def test_what_is_evaluated_again_gives_the_same_figures(folder):
    result = read_result(folder)
    assert evaluated(result) == result


def test_attempts_that_were_disturbed_are_kept_apart(tmp_path):
    result = simple()
    first = result.arms[0]
    steadier = msgspec.structs.replace(first.pilot, after_s=first.pilot.before_s)
    again = msgspec.structs.replace(
        first, attempt=1, pilot=steadier, scalars={"throughput": 100.05}
    )
    done = evaluated(msgspec.structs.replace(result, arms=[*result.arms, again]))
    assert done.dropped == [first]
    assert again in done.arms
    assert evaluated(done) == done
    text = report(tmp_path, done)
    assert "a steadier one replaced, 1: single, repetition 1 (2.0% off)" in text


def test_the_report_says_how_many_runs_the_machine_disturbed(tmp_path):
    result = simple()
    slow = Pilot(before_s={"0": 1.3}, after_s={"0": 1.3})
    arms = [msgspec.structs.replace(result.arms[0], pilot=slow), *result.arms[1:]]
    text = report(tmp_path, evaluated(msgspec.structs.replace(result, arms=arms)))
    count = len(arms)
    assert f"of {count} runs that count, 1 were more than 5% off it, 30.0% at most" in text


def test_the_answer_comes_first(tmp_path):
    lines = report(tmp_path, simple()).splitlines()
    assert lines[0] == "# Does it pay to split prefill and decode over two hosts?"
    assert lines[2].startswith("- **rate**: 100 tokens/s (")
    assert lines[3] == "  how fast"


def test_inconclusive_figures_say_so(tmp_path):
    recipe = serving()
    recipe = msgspec.structs.replace(
        recipe,
        figures={
            "rate": msgspec.structs.replace(recipe.figures["rate"], at={"candidate": "split"})
        },
    )
    runs = runs_of({"candidate": "split"}, "throughput", [80, 120, 100])
    assert "; *inconclusive*: its interval is" in report(tmp_path, result_of(recipe, runs))


def test_checks_and_arms_are_tables(tmp_path):
    text = report(tmp_path, simple())
    assert "| rate at least 90 tokens/s | 100 tokens/s (99.7 to 100) | held |" in text
    assert "| candidate | throughput, tokens/s | repetitions |" in text
    assert "| split | 98.6 (" in text


def test_emulated_devices_stand_above_all_numbers(folder):
    text = (folder / "report.md").read_text()
    assert text.index("**EMULATED: rtx-3090.**") < text.index("- **break-even-f16**")


def test_plots_are_in_the_report_and_beside_it(folder):
    text = (folder / "report.md").read_text()
    names = [line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert len(names) == 2
    assert all((folder / name).exists() for name in names)


def test_the_report_says_how_to_run_it_again(folder):
    """Its hosts are a lab's."""
    again = f"sudo $(which hetero) run {folder / 'result.json'}\n"
    assert again in (folder / "report.md").read_text()


def test_the_method_names_machine_model_code_and_overhead(tmp_path):
    result = simple()
    runs = [
        msgspec.structs.replace(each, scalars=each.scalars | {"load_cores": 0.03})
        for each in result.arms
    ]
    text = report(tmp_path, msgspec.structs.replace(result, arms=runs))
    for said in (
        "xeon-2-cores (Intel Xeon, 2 cores, 24 GiB)",
        "blake3 `7f7f",
        "commit 0123456789abcdef; hetero 0.1",
        result.recipe_hash[:16],
        "The load generator took 0.030 of a core on average",
        "0 were more than 5% off it, 2.0% at most",
        "95% intervals by bootstrap, 2000 resamples",
    ):
        assert said in text


def test_the_method_compares_clients_clocks_with_the_servers(tmp_path):
    ours = {"ttft": [1.0, 1.01, 9.0], "server_ttft": [1.0, 1.0, 1.0], "tpot": [0.1]}
    other = {"ttft": [2.1, 2.1], "server_ttft": [2.0, 2.0], "tpot": [0.1], "server_tpot": [0.1]}
    recipe = serving()
    runs = [
        fake_runs.run({"candidate": "single"}, 0, samples=ours),
        fake_runs.run({"candidate": "split"}, 0, samples=other),
    ]
    # Medians of 1% and 5%; the second clock's time a token is of one arm only.
    assert (
        "an arm's median times to the first token 3.00% apart (5.00% at most), times between "
        "tokens 0.00% apart (0.00% at most)."
    ) in report(tmp_path, result_of(recipe, runs))
    assert "clocks" not in report(tmp_path, simple())


def test_the_method_says_what_all_arms_rest_on(tmp_path):
    recipe, runs = fake_runs.fair_baseline()
    recipe = msgspec.structs.replace(recipe, plots=[])
    text = report(tmp_path, result_of(recipe, runs, calibration={"kv_bytes_per_s q8_0": 5e7}))
    assert "Goodput counts the requests that met `ttft_p95:2s,tpot_p95:100ms`." in text
    assert "for all arms that it is of: prefill yields 400 Mbit/s of KV, q8_0." in text
    assert "- One machine, two cores: hosts are namespaces with a core each." in text


def test_an_arm_without_a_run_is_called_not_measured(tmp_path):
    result = simple()
    result = msgspec.structs.replace(result, arms=result.arms[:3])
    assert "| split |  | not measured |" in report(tmp_path, result)


def test_a_run_without_any_arm_has_a_report(tmp_path):
    recipe, _ = fake_runs.fair_baseline()
    text = report(tmp_path, result_of(recipe, []))
    assert "not known: single, concurrency 1 has no ttft_p50" in text


def test_a_full_disk_leaves_the_result_that_was_there(tmp_path, monkeypatch):
    write_result(tmp_path, simple())
    before = (tmp_path / "result.json").read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HeteroError, match=r"result\.json: can't write it: no space left on device"):
        write_result(tmp_path, simple(ended="later"))
    assert (tmp_path / "result.json").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def edited(folder, change):
    fields = json.loads((folder / "result.json").read_text())
    change(fields)
    (folder / "result.json").write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda fields: fields.update(format=99), f"format: need {FORMAT}, have 99"),
        (lambda fields: fields.pop("recipe"), "need the result of a recipe, have none in it"),
        (lambda fields: fields.pop("arms"), "missing required field arms; edited"),
        (lambda fields: fields["arms"][0].update(attempt="x"), "arms.*: need int, have str"),
    ],
)
def test_other_files_are_refused_with_what_they_lack(tmp_path, change, says):
    write_result(tmp_path, simple())
    edited(tmp_path, change)
    with pytest.raises(ConfigError, match=says):
        read_result(tmp_path)


def test_a_file_that_was_cut_short(tmp_path):
    write_result(tmp_path, simple())
    path = tmp_path / "result.json"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ConfigError, match=r"cut short\?"):
        read_result(path)


def test_no_file_at_all(tmp_path):
    with pytest.raises(ConfigError, match="no such file or directory; `hetero results` lists"):
        read_result(tmp_path)


def test_metrics_that_no_arm_has_are_no_columns(tmp_path):
    text = report(tmp_path, simple())
    assert "ttft" not in text.split("## All arms")[1].split("## Method")[0]


def test_an_arm_without_a_metric_has_an_empty_cell(tmp_path):
    recipe, _ = fake_runs.interconnect()
    arm = {"candidate": "single", "kv": "f16"}
    text = report(tmp_path, result_of(recipe, [run(arm, samples={"ttft": [0.5]})]))
    assert "| single | f16 | any | 500 | 500 | 1 |" in text
