"""Clusters of real processes on this machine, with the embedded model."""

import json
import os
import signal
import subprocess
import sys
import time

import httpx
import psutil
import pytest
from tiny_models import write_tiny_model

from hetero.cli.llama_alone import greedy_tokens
from hetero.cli.prompt import prompt_tokens
from hetero.model.demo import DEMO_MODEL_PATH, recall_prompt

PATIENCE_S = 60
NODES = {"router", "prefill-0", "decode-0"}


class Up:
    """`hetero up --local --json` with these options, and its line on stdout."""

    def __init__(self, runs, *options):
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "XDG_RUNTIME_DIR": str(runs),
        }
        self.state_file = runs / "hetero" / "local" / "state.json"
        self.errors = (runs / "stderr").open("w+")
        self.process = subprocess.Popen(
            [*self.hetero("up", "--local", "--json"), *options],
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=self.environment,
        )
        line = self.process.stdout.readline()
        assert line, (self.process.wait(), (runs / "stderr").read_text())
        self.ready = json.loads(line)
        self.url = self.ready["url"]

    def hetero(self, *arguments):
        return [sys.executable, "-m", "hetero", *arguments]

    def run(self, *arguments):
        return subprocess.run(
            self.hetero(*arguments),
            capture_output=True,
            text=True,
            check=False,
            env=self.environment,
        )

    def pids(self):
        nodes = json.loads(self.state_file.read_text())["nodes"]
        return {node["name"]: node["pid"] for node in nodes}

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        self.process.stdout.close()
        self.errors.close()
        return self.process.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    up = Up(tmp_path_factory.mktemp("runs"), "--port", "0", "--context", "2560", "--slots", "2")
    yield up
    pids = list(up.pids().values())
    assert up.stop(signal.SIGINT) == 0
    assert gone(pids) == pids


def ask(url, **body):
    body = {"max_tokens": 8, "temperature": 0} | body
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE_S, trust_env=False)


def gone(pids):
    return [pid for pid in pids if not psutil.pid_exists(pid)]


def test_ready_line_names_url_and_processes(cluster):
    assert {node["name"] for node in cluster.ready["nodes"]} == NODES
    assert cluster.ready["owner"] == cluster.process.pid
    assert all(psutil.pid_exists(node["pid"]) for node in cluster.ready["nodes"])
    assert httpx.get(f"{cluster.url}/health", trust_env=False).status_code == 200


def test_status_finds_the_cluster_by_itself(cluster):
    status = json.loads(cluster.run("status", "--json").stdout)
    assert {(node["role"], node["health"]) for node in status["nodes"]} == {
        ("router", "ready"),
        ("prefill", "ready"),
        ("decode", "ready"),
    }
    table = cluster.run("status", "--url", cluster.url).stdout
    assert "decode-0" in table


def test_a_long_prompt_takes_the_wire(cluster):
    task = recall_prompt(256, seed=4)
    answer = ask(cluster.url, messages=[{"role": "user", "content": task.content}]).json()
    assert answer["choices"][0]["message"]["content"].strip() == task.answer
    assert answer["route"]["kind"] == "split"


def test_second_cluster_of_that_name_is_refused(cluster):
    run = cluster.run("up", "--local", "--port", "0")
    assert run.returncode == 2
    assert f"cluster 'local': is running already at {cluster.url}" in run.stderr


def test_port_in_use_is_named(cluster):
    port = cluster.url.rpartition(":")[2]
    run = cluster.run("up", "--local", "--port", port, "--name", "other", "--json")
    assert run.returncode == 2
    message = json.loads(run.stdout)["error"]["message"]
    assert message == f"port {port} on 127.0.0.1: in use; choose another with --port"


def test_killed_nodes_come_back_where_they_were(cluster):
    before = cluster.pids()
    for name in NODES:
        os.kill(before[name], signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    task = recall_prompt(200, seed=5)
    while True:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        try:
            answer = ask(
                cluster.url, messages=[{"role": "user", "content": task.content}], route="split"
            )
        except httpx.TransportError:
            continue  # the router is not back yet
        if answer.status_code == 200:
            break
    assert answer.json()["choices"][0]["message"]["content"].strip() == task.answer
    after = cluster.pids()
    assert all(before[name] != after[name] for name in NODES)


def test_the_end_leaves_nothing(tmp_path):
    up = Up(tmp_path, "--port", "0", "--context", "256", "--prefill-nodes", "0")
    pids = list(up.pids().values())
    assert len(pids) == 2
    assert up.stop() == 0
    assert gone(pids) == pids
    assert not up.state_file.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_a_killed_owner_leaves_no_process_and_no_cluster(tmp_path):
    up = Up(tmp_path, "--port", "0", "--context", "256", "--prefill-nodes", "0")
    pids = list(up.pids().values())
    up.stop(signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while gone(pids) != pids:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run = up.run("status")
    assert run.returncode == 1
    assert "no cluster is running here" in run.stderr
    assert not up.state_file.exists()


def test_a_damaged_model_fails_before_anything_starts(tmp_path):
    broken = tmp_path / "broken.gguf"
    whole = DEMO_MODEL_PATH.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    run = subprocess.run(
        [sys.executable, "-m", "hetero", "up", "--local", "--port", "0", "-m", str(broken)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert run.returncode == 2
    assert run.stderr.startswith(f"hetero: error: {broken}")
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "hetero").exists()


def test_a_node_that_can_not_start_fails_the_whole(tmp_path):
    model = write_tiny_model(tmp_path / "moe.gguf", architecture="qwen3moe")
    options = ("--port", "0", "--context", "256", "--prefill", "torch", "--json")
    run = subprocess.run(
        [sys.executable, "-m", "hetero", "up", "--local", "-m", str(model), *options],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "XDG_RUNTIME_DIR": str(tmp_path),
        },
    )
    assert run.returncode == 2
    message = json.loads(run.stdout)["error"]["message"]
    assert message.startswith("prefill-0: ")
    assert "use --prefill llama" in message
    assert not (tmp_path / "hetero" / "local" / "state.json").exists()


def run_hetero(tmp_path, *arguments):
    run = subprocess.run(
        [sys.executable, "-m", "hetero", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "XDG_RUNTIME_DIR": str(tmp_path),
        },
    )
    assert run.returncode == 0, run.stderr
    assert list((tmp_path / "hetero").iterdir()) == []
    return run


STAGES = {"tokenize_s", "prefill_s", "pack_s", "wire_s", "restore_s", "exposed_s"}
STAGES |= {"ttft_s", "tpot_s"}


def test_generate_equals_llama_alone(tmp_path):
    task = recall_prompt(60, seed=9)
    (tmp_path / "prompt").write_text(task.content)
    run = run_hetero(
        tmp_path, "generate", "-m", "demo", "-f", str(tmp_path / "prompt"), "--chat", "-n", "12",
        "--route", "split", "--prefill", "llama", "--kv-k", "f16", "--kv-v", "q8_0",
        "--chunk", "100", "--threads", "1", "--json",
    )  # fmt: skip
    answer = json.loads(run.stdout)
    prompt = prompt_tokens(DEMO_MODEL_PATH, task.content, chat=True)
    reference = greedy_tokens(
        DEMO_MODEL_PATH,
        prompt,
        max_tokens=12,
        kv_k="f16",
        kv_v="q8_0",
        chunk_tokens=100,
        num_threads=1,
    )
    assert answer["tokens"] == reference
    assert answer["text"].strip() == task.answer
    assert answer["prompt_tokens"] == len(prompt)
    assert (answer["route"], answer["prefill_engine"]) == ("split", "llama")
    assert (answer["kv_k"], answer["kv_v"]) == ("f16", "q8_0")
    assert answer["chunks"] == -(-len(prompt) // 100)
    # 3 layers of 2 KV heads of 64: f16 keys, q8_0 values (34 bytes for 32).
    assert answer["kv_bytes"] == len(prompt) * 3 * (128 * 2 + 128 // 32 * 34)
    assert set(answer["timings"]) == STAGES


def test_generate_prints_text_only_on_stdout(tmp_path):
    arguments = ("-p", "amber fox berlin", "-n", "3", "--route", "local")
    run = run_hetero(tmp_path, "generate", "-m", "demo", *arguments)
    assert run.stdout.strip() != ""
    assert "decode-0: ready" in run.stderr
    assert "first token after" in run.stderr


def test_demo_tells_its_story_and_matches(tmp_path):
    run = run_hetero(tmp_path, "demo", "--json")
    answer = json.loads(run.stdout)
    assert answer["match"] is True
    assert answer["tokens"] == answer["reference_tokens"]
    assert answer["route"] == "split"
    assert answer["prompt_tokens"] > 2048
    assert answer["kv_bytes"] > 0
