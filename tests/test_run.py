"""`hetero run` as users run it: to a report, again from its result, and interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hetero.cli import main
from hetero.experiment.outcome.result import read_result
from hetero.experiment.recipe.load import load_recipe, recipe_hash
from hetero.model.demo import DEMO_MODEL_PATH

needs_lab = pytest.mark.skipif(
    sys.platform != "linux"
    or os.geteuid() != 0
    or not all(shutil.which(tool) for tool in ("ip", "tc"))
    or len(os.sched_getaffinity(0)) < 2,
    reason="a lab of two hosts needs Linux, root, iproute2 and two cores",
)

# Whole and split serving of the demo model on this machine as it is.
RECIPE = {
    "kind": "serving",
    "name": "small",
    "question": "Does it run?",
    "cluster": {},
    "model": {"demo": True},
    "candidates": {
        "single": {"decode": ["here"]},
        "split": {"prefill": ["here"], "decode": ["here"], "settings": {"route": "split"}},
    },
    "settings": {"context_tokens": 128, "slots": 2, "chunk_tokens": 32, "requests": 2},
    "load": {"prompt": 64, "output": 4},
    "vary": {"concurrency": [1, 2]},
    "repetitions": 2,
    "slo": "ttft_p95:60s",
    "figures": {
        "ttft": {
            "kind": "ratio",
            "metric": "ttft_p50",
            "of": {"candidate": "split"},
            "to": {"candidate": "single"},
            "at": {"concurrency": 1},
            "says": "time to first token, split over single",
        },
    },
    "checks": [{"metric": "error_share", "at_most": 0}, {"metric": "goodput", "at_least": 1e-6}],
    "plots": [{"kind": "lines", "title": "Small", "x": "concurrency", "y": ["ttft_p50"]}],
}


def written(folder, **changes):
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(RECIPE | changes))
    return path


def run(capsys, *arguments):
    status = main.main(["run", *map(str, arguments), "--busy"])
    return status, *capsys.readouterr()


@pytest.mark.slow
def test_a_recipe_becomes_a_result_that_alone_is_enough_to_run_it_again(tmp_path, capsys):
    first, second = tmp_path / "results", tmp_path / "elsewhere"
    status, out, err = run(capsys, written(tmp_path), "--results", first, "--check", "--json")
    assert status == 0, err
    told = json.loads(out.splitlines()[-1])
    assert [check["held"] for check in told["checks"]] == [True, True]
    folder = Path(told["results"])
    assert folder.parent == first / "small"
    assert "[8/8]" in err

    result = read_result(folder)
    assert len(result.arms) == 8
    assert result.arms[0].samples["ttft"]
    assert {"router_cores", "load_cores", "throughput"} <= result.arms[0].scalars.keys()
    assert "time_to_first_token" in result.arms[0].aiperf
    assert result.model["hash"]
    assert result.profiles["ceilings"]["read_gb_s"] > 0
    requests = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    assert len(requests) == sum(run.num_records for run in [*result.arms, *result.dropped])
    assert {request["route"]["kind"] for request in requests} == {"local", "split"}
    report = (folder / "report.md").read_text()
    assert report.startswith("# Does it run?\n\n- **ttft**")
    assert list(folder.glob("*.png"))
    assert list(folder.glob("*.svg"))
    assert not (folder / "logs").exists()

    # Of the folder only this file is needed.
    alone = tmp_path / "mailed.json"
    alone.write_bytes((folder / "result.json").read_bytes())
    status, out, err = run(capsys, alone, "--results", second, "--json")
    assert status == 0, err
    again = read_result(Path(json.loads(out.splitlines()[-1])["results"]))
    assert again.recipe_hash == result.recipe_hash == recipe_hash(load_recipe(alone))
    assert again.recipe == result.recipe


def test_a_result_s_folder_has_the_text_it_takes_to_run_it_again(tmp_path, capsys):
    text = tmp_path / "words.txt"
    text.write_text(" ".join(str(number) for number in range(2000)))
    recipe = {
        "kind": "kv-quality",
        "name": "small",
        "question": "What does q8_0 cost?",
        "model": {"demo": True},
        "texts": [str(text)],
        "settings": {"prompts": 1, "prompt_tokens": 256},
        "vary": {"k": ["f16", "q8_0"]},
        "repetitions": 1,
        "figures": {
            "kld": {"kind": "value", "metric": "kld_mean", "at": {"k": "q8_0"}, "says": "KLD"}
        },
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    status, out, err = run(
        capsys, tmp_path / "small.yaml", "--results", tmp_path / "first", "--json"
    )
    assert status == 0, err
    folder = Path(json.loads(out.splitlines()[-1])["results"])
    text.unlink()
    moved = tmp_path / "moved"
    shutil.move(folder, moved)
    status, out, err = run(
        capsys, moved / "result.json", "--results", tmp_path / "second", "--json"
    )
    assert status == 0, err
    again = read_result(Path(json.loads(out.splitlines()[-1])["results"]))
    first = read_result(moved)
    assert again.recipe_hash == first.recipe_hash
    assert [run.samples for run in again.arms] == [run.samples for run in first.arms]


@needs_lab
@pytest.mark.slow
def test_every_arm_of_a_lab_gets_the_wire_it_asks_for(tmp_path, capsys):
    split = {"prefill": ["a"], "decode": ["b"]}
    changes = {
        "cluster": {"lab": {"hosts": {"a": {}, "b": {}}, "rate": "200mbit"}},
        "candidates": {
            "by-ratio": split | {"settings": {"route": "split"}},
            "as-the-lab-is": {"decode": ["b"], "ignores": ["wire_ratio"]},
        },
        "settings": RECIPE["settings"] | {"concurrency": 1},
        "vary": {"wire_ratio": [0.5, 2]},
        "repetitions": 1,
        "figures": {
            "exposed": {
                "kind": "value",
                "metric": "exposed_p50",
                "at": {"candidate": "by-ratio", "wire_ratio": 2},
                "says": "exposed transfer",
            }
        },
        "plots": [],
    }
    status, out, err = run(
        capsys, written(tmp_path, **changes), "--results", tmp_path / "results", "--json"
    )
    assert status == 0, err
    result = read_result(Path(json.loads(out.splitlines()[-1])["results"]))
    links = {
        (run.arm["candidate"], run.arm.get("wire_ratio")): run.settings["link_bits_per_s"]
        for run in result.arms
    }
    yielded = result.calibration["kv_bytes_per_s f16 repetition 1"]
    assert links == {
        ("by-ratio", 0.5): round(8 * yielded / 0.5),
        ("by-ratio", 2): round(8 * yielded / 2),
        ("as-the-lab-is", None): 200_000_000,
    }


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_measured_and_the_same_command_goes_on(tmp_path):
    recipe, results = written(tmp_path), tmp_path / "results"
    command = [sys.executable, "-m", "hetero", "run", recipe, "--results", results, "--busy"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as running:
        for line in running.stderr:
            if line.startswith("[2/8]"):
                running.send_signal(signal.SIGINT)
                break
        rest = running.stderr.read()
    assert running.returncode == 130
    assert "stopped; what was measured is kept" in rest
    assert "Traceback" not in rest
    (folder,) = (results / "small").iterdir()
    num_lines = len((folder / "journal.jsonl").read_text().splitlines())
    assert num_lines >= 2

    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "going on with this run" in done.stderr
    assert list((results / "small").iterdir()) == [folder]
    assert len(read_result(folder).arms) == 8


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"lod": "chat"}, "lod: no such key; did you mean load"),
        ({"model": {"file": "/nowhere.gguf", "hash": "0" * 64}}, "none at /nowhere.gguf"),
        (
            {"model": {"file": str(DEMO_MODEL_PATH), "hash": "0" * 64}},
            f"need hash {'0' * 64}, have",
        ),
        ({"cluster": {"file": "cluster.yaml"}}, "cluster.file"),
        ({"load": "chatt"}, "did you mean chat"),
        (
            {"candidates": {"a": {"peer": {"server": "llama-server", "binary": "/nowhere"}}}},
            "have no program /nowhere",
        ),
    ],
)
def test_what_can_not_be_run_is_refused_before_anything_is_measured(
    changes, complaint, tmp_path, capsys
):
    figure = {"kind": "value", "metric": "ttft_p50", "at": {"concurrency": 1}, "says": "x"}
    if "candidates" in changes:
        changes = changes | {"figures": {"ttft": figure}}
    status, _, err = run(capsys, written(tmp_path, **changes), "--results", tmp_path / "results")
    assert status in (1, 2)
    assert complaint in err
    assert "Traceback" not in err
    assert not list((tmp_path / "results").glob("*/*"))


def test_a_model_of_ones_own_needs_texts_to_read(tmp_path, capsys):
    arguments = ("--model", DEMO_MODEL_PATH, "--results", tmp_path / "r")
    status, _, err = run(capsys, "kv-quality", *arguments)
    assert status == 2
    assert "--texts: need UTF-8 files for demo.gguf to read, have none" in err
    status, _, err = run(capsys, written(tmp_path), "--texts", tmp_path / "x.txt", *arguments)
    assert status == 2
    assert "--texts: need a kv-quality recipe, have small" in err


def test_another_program_that_computes_here_is_a_reason_not_to_begin(tmp_path, capsys):
    # Nobody's child here: what a run starts itself does not count.
    start = f"'{sys.executable}' -c 'while True: pass' >/dev/null & echo $!"
    hog = int(subprocess.run(["sh", "-c", start], stdout=subprocess.PIPE, text=True).stdout)
    try:
        status = main.main(["run", str(written(tmp_path)), "--results", str(tmp_path / "r")])
    finally:
        os.kill(hog, signal.SIGKILL)
    err = capsys.readouterr().err
    assert status == 1
    assert "other processes that take" in err
    assert "--busy" in err
    assert not (tmp_path / "r").exists()
