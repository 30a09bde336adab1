"""The load generator against a real hetero cluster with the demo model."""

import json
import subprocess
import sys

import msgspec
import pytest

from hetero.experiment.load.execute import execute
from hetero.experiment.load.plan import LoadPlan
from hetero.experiment.load.record import RequestRecord
from hetero.launch.local import LocalCluster, LocalPlan
from hetero.model.demo import DEMO_MODEL_PATH
from hetero.workload.named import load_workload


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        settings = LocalPlan(
            name="load-test",
            model=DEMO_MODEL_PATH,
            context_tokens=1024,
            slots=4,
            threads=1,
            prefill="llama",
        )
        with LocalCluster(settings, lambda line: None) as cluster:
            yield cluster.url


def drawn(count=8, **sizes):
    return load_workload("prompt=uniform:30-900,output=16").draw(0, num_requests=count, **sizes)


@pytest.mark.parametrize(("route", "seed"), [("split", 1), ("local", 2)])
def test_lengths_are_exact_and_times_are_the_servers(url, route, seed):
    outcome = execute(LoadPlan(url=url, schedule=drawn(), route=route, warmup=2, seed=seed))
    assert (outcome.server, outcome.prompt_kind) == ("hetero", "token ids")
    assert outcome.metrics.errors == {}
    assert (outcome.prompt_lengths.exact, outcome.prompt_lengths.counted) == (8, 8)
    behind_s = []
    for record in outcome.records:
        assert record.counted_prompt_tokens == record.prompt_tokens
        assert record.counted_output_tokens == sum(record.piece_tokens) == 16
        assert record.route["kind"] == route
        behind_s.append(record.piece_s[0] - record.sent_s - record.stages["ttft_s"])
    assert min(behind_s) > 0
    # The way there and back is all that we see more of; a shared machine adds to some of them.
    assert min(behind_s) < 0.005
    samples = outcome.metrics.samples
    # Without the first, which finds the place empty.
    assert len(samples["prefill"]) == len(samples["server_ttft"]) == 7
    assert ("wire" in samples) == ("kv_bytes" in samples) == (route == "split")


def test_a_chat_prompt_is_exact_too(url):
    outcome = execute(LoadPlan(url=url, schedule=drawn(), endpoint="chat", concurrency=2))
    assert outcome.prompt_kind == "text"
    assert outcome.metrics.errors == {}
    assert outcome.prompt_lengths.worst <= 1


def test_as_a_child_it_leaves_the_same_records(url, tmp_path):
    load_plan = LoadPlan(url=url, schedule=drawn(4), concurrency=2, slo="ttft_p95:60s")
    run = subprocess.run(
        [sys.executable, "-m", "hetero.experiment.load.child", str(tmp_path / "records.jsonl")],
        input=msgspec.json.encode(load_plan),
        capture_output=True,
        check=True,
    )
    summary = json.loads(run.stdout.splitlines()[-1])
    lines = (tmp_path / "records.jsonl").read_bytes().splitlines()
    records = [msgspec.json.decode(line, type=RequestRecord) for line in lines]
    assert summary["records"] == len(records) == 4
    assert all(record.is_ok for record in records)
    assert summary["scalars"]["slo_met"] == 1
    assert summary["share"]["cpu_s"] > 0
    assert summary["share"]["seconds"] >= max(record.ended_s for record in records)
    assert summary["aiperf"]["request_count"]["avg"] == 4


def test_a_child_says_what_is_wrong_with_its_plan(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "hetero.experiment.load.child", str(tmp_path / "records.jsonl")],
        input=b'{"url": "http://127.0.0.1:1", "wat": 1}',
        capture_output=True,
        check=False,
    )
    assert run.returncode == 2
    assert json.loads(run.stdout)["error"]["kind"] == "ConfigError"
