"""Processes that die or freeze under load: the client hears of it, and the cluster comes back."""

import os
import signal
import time

import httpx
import openai
import pytest

from hetero.launch.local import LocalCluster, LocalPlan
from hetero.model.demo import DEMO_MODEL_PATH, recall_prompt

pytestmark = pytest.mark.slow

WAIT_S = 60


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plan = LocalPlan(
        name="fault-test",
        model=DEMO_MODEL_PATH,
        context_tokens=4096,
        threads=1,
        prefill="llama",
    )
    with LocalCluster(plan, lambda line: None) as cluster:
        yield cluster.url


def node(url, name):
    nodes = httpx.get(f"{url}/status").json()["nodes"]
    return next(node for node in nodes if node["name"] == name)


def until(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=WAIT_S, max_retries=0)


def ask(url, route="split"):
    task = recall_prompt(200, seed=1)
    answer = client(url).chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": task.content}],
        temperature=0,
        extra_body={"route": route},
    )
    assert answer.choices[0].message.content == task.answer


def stream(url, num_pairs=20, max_tokens=3000, route="split"):
    return client(url).chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": recall_prompt(num_pairs, seed=2).content}],
        stream=True,
        max_tokens=max_tokens,
        extra_body={"route": route, "ignore_eos": True},
    )


def test_a_decode_node_killed_mid_stream_ends_the_stream_with_an_error(url):
    chunks = iter(stream(url))
    next(chunks), next(chunks)
    pid = node(url, "decode-0")["pid"]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="node decode-0 was"):
        list(chunks)
    until(
        lambda: node(url, "decode-0")["health"] == "ready" and node(url, "decode-0")["pid"] != pid
    )
    ask(url)
    assert node(url, "decode-0")["kv_bytes_held"] == 0


def test_a_prefill_node_killed_mid_prompt_fails_the_request_and_frees_its_room(url):
    pid = node(url, "prefill-0")["pid"]
    os.kill(pid, signal.SIGSTOP)  # so that it dies with the prompt unread, whatever the speed
    request = {"prompt": "x" * 3000, "max_tokens": 5, "route": "split", "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=request, timeout=WAIT_S) as response:
        until(lambda: node(url, "decode-0")["kv_bytes_held"] > 0)
        os.kill(pid, signal.SIGKILL)
        text = "".join(response.iter_text())
    assert "node prefill-0 was" in text
    assert "[DONE]" not in text
    until(lambda: node(url, "decode-0")["kv_bytes_held"] == 0)
    until(lambda: node(url, "prefill-0")["health"] == "ready")
    ask(url)


def test_a_frozen_prefill_node_is_lost_and_welcome_when_it_thaws(url):
    pid = node(url, "prefill-0")["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(openai.APIError, match="prefill-0 was silent for 10 s"):
            ask(url)
        assert node(url, "prefill-0")["health"] == "lost"
        until(lambda: node(url, "decode-0")["kv_bytes_held"] == 0)
        ask(url, route="auto")  # goes local meanwhile
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: node(url, "prefill-0")["health"] == "ready")
    ask(url)


def test_a_router_that_was_killed_finds_its_nodes_again(url):
    os.kill(node(url, router_name(url))["pid"], signal.SIGKILL)

    def is_back():
        try:
            return httpx.get(f"{url}/health").status_code == 200
        except httpx.TransportError:
            return False

    until(is_back)
    until(lambda: len(httpx.get(f"{url}/status").json()["nodes"]) == 3)
    ask(url)


def router_name(url):
    return httpx.get(f"{url}/status").json()["nodes"][0]["name"]
