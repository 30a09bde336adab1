"""Nodes that die or freeze, links that break, clients that leave: in every state of a transfer the
client gets the right tokens or an error in time, and the nodes hold nothing afterwards."""

import dataclasses
import os
import signal
import threading
import time

import httpx
import pytest
from proxied_cluster import Gate, ProxiedCluster
from wire_proxy import Spoil, WireProxy, faithful, flip

from hetero.launch.local import LocalPlan
from hetero.model.demo import DEMO_MODEL_PATH, recall_prompt

pytestmark = pytest.mark.slow

CLIENT_WAIT_S = 45
# A node frees what it is told to within a second, and says so with its next heartbeat, a second
# later at most; the rest is this machine's. Nothing here waits for a lease, which is 30 s.
FREE_WAIT_S = 6
# A router that takes a node for dead has waited 10 s; one that restarts needs a few.
BACK_WAIT_S = 30

STATES = ["ticketed", "opening", "moving", "closing", "generating"]
BODY = {
    "prompt": recall_prompt(200, seed=2).content,
    "max_tokens": 40,
    "temperature": 0,
    "route": "split",
    "return_tokens": True,
    "ignore_eos": True,
}


class Cluster:
    def __init__(self, url, proxy):
        self.url, self.proxy = url, proxy
        self.expected = self.ask()["choices"][0]["tokens"]
        assert len(self.expected) == BODY["max_tokens"]
        self.until_idle()

    def ask(self, **changes):
        answer = httpx.post(
            f"{self.url}/v1/completions", json=BODY | changes, timeout=CLIENT_WAIT_S
        )
        return answer.json()

    def nodes(self):
        nodes = httpx.get(f"{self.url}/status", timeout=CLIENT_WAIT_S).json()["nodes"]
        return {node["name"]: node for node in nodes if node["role"] != "router"}

    def pid(self, name):
        return self.nodes()[name]["pid"]

    def until_idle(self, *names, seconds=FREE_WAIT_S):
        def is_idle(node):
            return not (node["kv_bytes_held"] or node["active"] or node["queued"])

        until(lambda: all(is_idle(self.nodes()[n]) for n in names or self.nodes()), seconds)

    def until_ready(self):
        def all_ready():
            return all(node["health"] == "ready" for node in self.nodes().values())

        until(all_ready, BACK_WAIT_S)

    def check_works(self):
        """Everything is back: nothing is held, and a request gets the same tokens as ever."""
        self.proxy.fault = faithful
        self.until_ready()
        self.until_idle()
        assert self.ask()["choices"][0]["tokens"] == self.expected


class Client(threading.Thread):
    """Asks, and keeps what came: an answer, or an error."""

    def __init__(self, cluster, **changes):
        super().__init__(daemon=True)
        self._cluster = cluster
        self._changes = changes
        self.answer = None
        self.start()

    def run(self):
        self.answer = self._cluster.ask(**self._changes)

    def check(self):
        """In time, right or an error that says what happened; the error if there is one."""
        self.join(CLIENT_WAIT_S)
        assert self.answer is not None, "the client waits on"
        if "error" in self.answer:
            return self.answer["error"]["message"]
        assert self.answer["choices"][0]["tokens"] == self._cluster.expected
        return None


class Streaming:
    """A client that reads its first tokens, the later ones from the decode node, and no more."""

    def __init__(self, cluster):
        self._stream = httpx.stream(
            "POST",
            f"{cluster.url}/v1/completions",
            json=BODY | {"stream": True, "max_tokens": 2500},
            timeout=CLIENT_WAIT_S,
        )
        self._response = self._stream.__enter__()
        self._lines = self._response.iter_lines()
        for _ in range(10):  # each event is two
            next(self._lines)

    def rest(self):
        return "\n".join(self._lines)

    def leave(self):
        self._stream.__exit__(None, None, None)


def until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


PLAN = LocalPlan(
    name="cluster-fault-test",
    model=DEMO_MODEL_PATH,
    context_tokens=4096,
    slots=2,
    chunk_tokens=128,
    threads=1,
    prefill="llama",
)


@pytest.fixture(scope="module", autouse=True)
def directories(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def cluster(directories):
    proxy = WireProxy()
    with ProxiedCluster(PLAN, proxy) as running:
        yield Cluster(running.url, proxy)
    proxy.close()


def other(name):
    return {"prefill-0": "decode-0", "decode-0": "prefill-0"}[name]


@pytest.mark.parametrize("name", ["prefill-0", "decode-0"])
@pytest.mark.parametrize("state", STATES)
def test_a_node_is_killed(cluster, state, name):
    pid = cluster.pid(name)
    if state == "generating":
        client = Streaming(cluster)
        os.kill(pid, signal.SIGKILL)
        text = client.rest()
        client.leave()
        assert ("error" in text) == (name == "decode-0")
        assert ("[DONE]" in text) == (name == "prefill-0")
    else:
        gate = cluster.proxy.fault = Gate(state)
        client = Client(cluster)
        assert gate.reached.wait(CLIENT_WAIT_S)
        os.kill(pid, signal.SIGKILL)
        error = client.check()
        cluster.until_idle(other(name))
        gate.open()
        assert error, "what its node had was lost"
    until(lambda: cluster.pid(name) != pid, BACK_WAIT_S)
    cluster.check_works()


@pytest.mark.parametrize("name", ["prefill-0", "decode-0"])
@pytest.mark.parametrize("state", STATES)
def test_a_node_freezes_until_it_is_given_up(cluster, state, name):
    pid = cluster.pid(name)
    gate = cluster.proxy.fault = Gate(state)
    streaming = Streaming(cluster) if state == "generating" else None
    client = Client(cluster) if streaming is None else None
    if client:
        assert gate.reached.wait(CLIENT_WAIT_S)
    os.kill(pid, signal.SIGSTOP)
    try:
        gate.open()
        if client:
            client.check()
        else:
            text = streaming.rest()
            streaming.leave()
            assert ("error" in text) == (name == "decode-0")
            assert ("[DONE]" in text) == (name == "prefill-0")
        until(lambda: cluster.nodes()[name]["health"] == "lost", BACK_WAIT_S)
        cluster.until_idle(other(name))
    finally:
        os.kill(pid, signal.SIGCONT)
    cluster.check_works()
    assert cluster.pid(name) == pid


@pytest.mark.parametrize("name", ["prefill-0", "decode-0"])
@pytest.mark.parametrize("state", STATES[:-1])
def test_a_node_freezes_for_a_moment(cluster, state, name):
    pid = cluster.pid(name)
    gate = cluster.proxy.fault = Gate(state)
    client = Client(cluster)
    assert gate.reached.wait(CLIENT_WAIT_S)
    os.kill(pid, signal.SIGSTOP)
    try:
        gate.open()
        time.sleep(2)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert client.check() is None
    cluster.check_works()


@pytest.mark.parametrize("state", STATES)
def test_a_client_leaves(cluster, state):
    """Both nodes hear of it from the router, and let go though the link doesn't move."""
    gate = cluster.proxy.fault = Gate(state)
    if state == "generating":
        client = Streaming(cluster)
        client.leave()
    else:
        leaving = httpx.Client(timeout=CLIENT_WAIT_S)
        failures = []

        def ask():
            try:
                leaving.post(f"{cluster.url}/v1/completions", json=BODY)
            except (httpx.TransportError, RuntimeError) as error:
                failures.append(error)

        impatient = threading.Thread(target=ask)
        leaving.timeout = httpx.Timeout(1.0)
        impatient.start()
        assert gate.reached.wait(CLIENT_WAIT_S)
        impatient.join(CLIENT_WAIT_S)
        leaving.close()
        assert failures
    cluster.until_idle()
    gate.open()
    cluster.check_works()


@pytest.mark.parametrize("seconds", [0.1, 2])
@pytest.mark.parametrize("state", STATES[:-1])
def test_the_link_is_down_for_a_while(cluster, state, seconds):
    gate = cluster.proxy.fault = Gate(state)
    client = Client(cluster)
    assert gate.reached.wait(CLIENT_WAIT_S)
    cluster.proxy.down()
    gate.open()
    time.sleep(seconds)
    cluster.proxy.up()
    assert client.check() is None
    cluster.check_works()


@pytest.mark.parametrize("state", ["opening", "moving"])
def test_the_link_is_down_for_a_minute(cluster, state):
    gate = cluster.proxy.fault = Gate(state)
    began = time.monotonic()
    client = Client(cluster)
    assert gate.reached.wait(CLIENT_WAIT_S)
    cluster.proxy.down()
    gate.open()
    try:
        error = client.check()
        assert "need a sign of life within 30 s" in error or "timed out" in error
        cluster.until_idle()
        time.sleep(max(0.0, began + 60 - time.monotonic()))
    finally:
        cluster.proxy.up()
    cluster.check_works()


def test_the_rate_falls_from_10_to_1_gbit(cluster):
    cluster.proxy.bytes_per_s = 1.25e9
    gate = cluster.proxy.fault = Gate("moving")
    client = Client(cluster)
    assert gate.reached.wait(CLIENT_WAIT_S)
    cluster.proxy.bytes_per_s = 1.25e8
    gate.open()
    assert client.check() is None
    cluster.proxy.bytes_per_s = None
    cluster.check_works()


@pytest.mark.parametrize("to_sink", [True, False])
@pytest.mark.parametrize("number", [0, 1, 4])
def test_a_bit_flips(cluster, number, to_sink):
    fault = cluster.proxy.fault = Spoil(number, flip(-1), to_sink=to_sink)
    # Only the first connection is spoiled, and it numbers them for good.
    cluster.proxy.num_connections = 0
    client = Client(cluster)
    error = client.check()
    assert fault.happened.is_set()
    assert error
    cluster.check_works()


def test_more_prompts_than_the_decode_node_has_room_for(cluster):
    clients = [Client(cluster) for _ in range(10)]
    assert [client.check() for client in clients] == [None] * 10
    cluster.check_works()


def test_a_prompt_waits_for_cells_that_a_stuck_transfer_holds(cluster):
    """Two slots are promised to transfers that don't move; a third waits, and gets one later."""
    gate = cluster.proxy.fault = Gate("moving")
    stuck = [Client(cluster) for _ in range(2)]
    assert gate.reached.wait(CLIENT_WAIT_S)
    waiting = Client(cluster)
    until(lambda: cluster.nodes()["decode-0"]["queued"], CLIENT_WAIT_S)
    gate.open()
    assert [client.check() for client in [*stuck, waiting]] == [None] * 3
    cluster.check_works()


def test_a_prompt_that_never_fits_is_refused(cluster):
    answer = cluster.ask(max_tokens=4000)
    assert "context" in answer["error"]["message"]
    cluster.check_works()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        # Of another type, and so not rotated either.
        ({"kv_v": "f16"}, "v_type: q8_0 here, f16 there; v_rotation: 64 here, 0 there"),
        ({"kv_k": "q4_0"}, "k_type: q8_0 here, q4_0 there"),
        ({"seal": "mac"}, None),  # agrees to the stronger one as well
    ],
    ids=["type and rotation", "type", "seal"],
)
def test_a_prefill_node_with_another_cache_is_not_used(changes, reason):
    plan = dataclasses.replace(PLAN, name="mismatch-test")
    proxy = WireProxy()
    with ProxiedCluster(plan, proxy, **changes) as running:
        url = f"{running.url}/v1/completions"
        split = httpx.post(url, json=BODY, timeout=CLIENT_WAIT_S).json()
        if reason is None:
            assert len(split["choices"][0]["tokens"]) == BODY["max_tokens"]
        else:
            assert reason in split["error"]["message"]
            assert proxy.num_connections == 0
            local = httpx.post(url, json=BODY | {"route": "auto"}, timeout=CLIENT_WAIT_S).json()
            assert local["route"]["kind"] == "local"
    proxy.close()
