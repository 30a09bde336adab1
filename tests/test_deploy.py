"""A recipe's candidates, brought up with real processes, in real namespaces."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time

import psutil
import pytest
from front_requests import PATIENCE_S, complete
from tiny_models import tiny_shape

from hetero.errors import ConfigError, EngineError, HeteroError, PlanError
from hetero.experiment.deploy import lab_site
from hetero.experiment.deploy.deployment import Deployment
from hetero.experiment.deploy.site import FRONT, LocalSite, make_site
from hetero.experiment.recipe.recipe import (
    Candidate,
    Cluster,
    Emulated,
    Lab,
    LabHost,
    Peer,
    Settings,
)
from hetero.launch.lab.limits import groups_of_lab, machine_controllers
from hetero.launch.lab.network import NAMESPACES, lab_prefix
from hetero.launch.lab.state import STATES
from hetero.model.demo import DEMO_MODEL_PATH
from hetero.model.synth import write_synthetic

needs_lab = pytest.mark.skipif(
    sys.platform != "linux"
    or os.geteuid() != 0
    or not all(shutil.which(tool) for tool in ("ip", "tc")),
    reason="a lab needs Linux, root and iproute2",
)
SPLIT = Candidate(prefill=["a"], decode=["b"])
# Two hosts on a machine of any size.
ONE_CORE = {"a": LabHost(cpus="0"), "b": LabHost(cpus="0", quota=0.5)}


def two_hosts(**changes):
    return Cluster(lab=Lab(**{"hosts": ONE_CORE, "rate": "1gbit"} | changes))


def sent_bytes(site, host, to):
    """What `host` sent over its cable to `to`: those are in the order of the lab's links."""
    cables = site._lab.topology.cables_of(host)
    index = [cable.far_end(host) for cable in cables].index(to)
    command = ["cat", f"/sys/class/net/eth{index}/statistics/tx_bytes"]
    with site.popen(host, command, stdout=subprocess.PIPE, text=True) as cat:
        return int(cat.communicate()[0])


def remains():
    prefix = lab_prefix(f"run-{os.getpid()}")
    return [
        *NAMESPACES.glob(f"{prefix}*"),
        *groups_of_lab(prefix, machine_controllers()),
        *STATES.glob(f"*run-{os.getpid()}*"),
    ]


def children():
    return set(psutil.Process().children(recursive=True))


@pytest.fixture
def nothing_left():
    before = children()  # another test's helper process, as multiprocessing keeps one
    yield
    assert remains() == []
    assert children() <= before


@pytest.fixture(scope="module")
def thin_model(tmp_path_factory):
    """With rows large beside what else a request sends."""
    path = tmp_path_factory.mktemp("model") / "thin.gguf"
    shape = tiny_shape(num_layers=4, num_kv_heads=4, head_dim=64, vocab=512)
    return write_synthetic(shape, "f16", path)


@needs_lab
@pytest.mark.slow
@pytest.mark.parametrize(
    ("candidate", "kind"),
    [
        (Candidate(decode=["a"]), "local"),
        (Candidate(decode=["a", "b"]), "local"),
        (SPLIT, "split"),
    ],
)
def test_a_candidate_answers_in_a_lab(candidate, kind, tmp_path, nothing_left):
    with (
        make_site(two_hosts()) as site,
        Deployment(
            site, DEMO_MODEL_PATH, candidate, Settings(), tmp_path / "run", lambda line: None
        ) as deployment,
    ):
        answer = complete(site, deployment.url, route=kind)
        assert answer["choices"][0]["text"].startswith("amber fox lisbon")
        assert answer["route"]["kind"] == kind
        engines = {f"prefill-{host}" for host in candidate.prefill}
        engines |= {f"decode-{host}" for host in candidate.decode}
        before = deployment.cpu_seconds()
        assert set(before) == {"router", *engines}
        assert min(before.values()) > 0
        complete(site, deployment.url, route=kind)
        after = deployment.cpu_seconds()
        assert all(after[name] >= before[name] for name in before)
        deployment.check_alive()
        assert {"hetero", "llama-cpp-python"} <= set(deployment.versions)
        # The keys in there are secrets.
        assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    assert not (tmp_path / "run").exists()


@needs_lab
@pytest.mark.slow
def test_kv_takes_the_cable_of_its_two_hosts_and_a_rate_slows_it(
    thin_model, tmp_path, nothing_left
):
    prompt = {
        "model": "thin",
        "prompt": [5 + number % 400 for number in range(600)],
        "route": "split",
    }
    with (
        make_site(two_hosts()) as site,
        Deployment(
            site, thin_model, SPLIT, Settings(seal="mac"), tmp_path / "run", lambda line: None
        ) as deployment,
    ):
        direct, front = sent_bytes(site, "a", "b"), sent_bytes(site, "a", FRONT)
        fast = complete(site, deployment.url, **prompt)
        direct = sent_bytes(site, "a", "b") - direct
        front = sent_bytes(site, "a", FRONT) - front
        # 599 or 600 rows of K and V in 16 bits, and little beside them.
        kv_bytes = fast["timings"]["kv_bytes"]
        assert kv_bytes == pytest.approx(600 * 4 * 2 * 4 * 64 * 2, rel=0.02)
        assert kv_bytes < direct < 1.2 * kv_bytes
        assert front < kv_bytes / 20
        site.set_link("5mbit")
        slow = complete(site, deployment.url, **prompt)
        # The bytes at that rate, but for what a bucket lets through at once.
        assert slow["timings"]["ttft_s"] > 0.5 * 8 * kv_bytes / 5e6
        assert slow["timings"]["ttft_s"] > fast["timings"]["ttft_s"]


@needs_lab
@pytest.mark.slow
def test_a_killed_node_is_reported_and_not_started_again(tmp_path, nothing_left):
    def lose_a_node():
        with (
            make_site(two_hosts()) as site,
            Deployment(
                site, DEMO_MODEL_PATH, SPLIT, Settings(), tmp_path / "run", lambda line: None
            ) as deployment,
        ):
            os.kill(deployment._processes.supervisors["decode-b"].pid, signal.SIGKILL)
            deadline = time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline:
                deployment.check_alive()
                time.sleep(0.02)

    with pytest.raises(EngineError, match=r"decode-b: a crash.*killed by SIGKILL"):
        lose_a_node()
    # What they said is left for whoever wants to know why, and no secret.
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "decode-b.log",
        "prefill-a.log",
        "router.log",
    ]


@needs_lab
def test_nothing_is_left_after_an_exception_inside(tmp_path, nothing_left):
    started = []

    def fail_inside():
        with make_site(two_hosts()) as site:
            stay = ["sh", "-c", "echo ready; exec sleep 1000"]
            started.append(site.popen("a", stay, stdout=subprocess.PIPE, text=True))
            assert started[0].stdout.readline() == "ready\n"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    with started[0] as process:
        assert process.wait(PATIENCE_S) == -signal.SIGKILL

    def interrupt(line):
        raise KeyboardInterrupt

    deployment = Deployment(
        LocalSite(),
        DEMO_MODEL_PATH,
        Candidate(decode=["here"]),
        Settings(),
        tmp_path / "run",
        interrupt,
    )
    with pytest.raises(KeyboardInterrupt):
        deployment.__enter__()
    assert not (tmp_path / "run").exists()


@needs_lab
def test_a_lab_of_a_killed_run_is_removed_by_the_next(nothing_left):
    code = """
import os, signal
from hetero.experiment.deploy.lab_site import LabSite
from hetero.experiment.recipe.recipe import Lab, LabHost
LabSite(Lab(hosts={"a": LabHost(cpus=None)})).__enter__()
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = os.pathsep.join(filter(None, sys.path))
    killed = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path})
    assert killed.wait() == -signal.SIGKILL
    prefix = lab_prefix(f"run-{killed.pid}")
    assert list(NAMESPACES.glob(f"{prefix}*"))
    with make_site(two_hosts()):
        assert not list(NAMESPACES.glob(f"{prefix}*"))


@needs_lab
def test_the_front_yields_and_engines_do_not(nothing_left):
    # A process that never got a session of its own may be in no group of the scheduler's.
    code = "import os; print(os.nice(0), *open('/proc/self/autogroup').read().split()[-1:])"
    with make_site(two_hosts()) as site:
        found = {}
        for host in (FRONT, "a"):
            argv = [sys.executable, "-S", "-c", code]
            with site.popen(host, argv, stdout=subprocess.PIPE, text=True) as asking:
                found[host] = asking.communicate()[0].split()
        assert found[FRONT] == ["5", "5"]
        assert found["a"][0] == "0"


def test_hosts_get_the_cores_that_nobody_named():
    lab = Lab(
        hosts={"a": LabHost(), "b": LabHost(cpus="0"), "c": LabHost(), "d": LabHost(cpus=None)}
    )
    topology = lab_site.lab_topology("x", lab, [[0, 4], [1, 5], [2, 6]])
    assert [host.cpus for host in topology.hosts] == ["1,5", "0", "2,6", None, None]
    whole = Lab(hosts={"a": LabHost(), "b": LabHost(cpus="0")})
    front = lab_site.lab_topology("x", whole, [[0, 4], [1, 5]]).host(FRONT)
    assert front.cpus == "1,5,0"  # the hosts', and no others
    rates = {cable.text: cable.rate_bits_per_s for cable in topology.cables}
    assert rates["a - b"] == 10e9
    assert rates["front - a"] == 40e9
    assert len(rates) == 6 + 4


def test_too_few_cores_are_told_with_a_way_out():
    lab = Lab(hosts={"a": LabHost(), "b": LabHost(), "c": LabHost(cpus="0-1")})
    with pytest.raises(PlanError, match=r"for each of a, b, have 1 free of 3; .*cpus: \"0\""):
        lab_site.lab_topology("x", lab, [[0], [1], [2]])
    with pytest.raises(ConfigError, match="'front' is where router and load generator run"):
        lab_site.lab_topology("x", Lab(hosts={FRONT: LabHost()}), [[0]])
    with pytest.raises(ConfigError, match=r"cluster.lab: links\[0\].rate: need a rate from 5mbit"):
        lab_site.lab_topology("x", Lab(hosts=ONE_CORE, rate="1mbit"), [[0]])


@pytest.mark.parametrize(
    ("candidate", "complaint"),
    [
        (Candidate(decode=[FRONT]), "decode: need a host of the cluster, have 'front'"),
        (
            Candidate(peer=Peer(server="llama-server", host="a", binary="/nowhere/llama")),
            "peer.binary: need llama-server there, have no program /nowhere/llama; build one with",
        ),
        (
            Candidate(peer=Peer(server="llama-server", host="a")),
            "need the path of llama-server, have none; .*set HETERO_LLAMA_SERVER",
        ),
    ],
)
def test_a_candidate_that_can_not_be_is_told_why(candidate, complaint, tmp_path, monkeypatch):
    monkeypatch.delenv("HETERO_LLAMA_SERVER", raising=False)
    with pytest.raises(HeteroError, match=complaint):
        Deployment(
            LocalSite(), DEMO_MODEL_PATH, candidate, Settings(), tmp_path / "run", print
        ).__enter__()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_emulated_device_reads_prompts_and_every_answer_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    candidate = Candidate(prefill=["a"], decode=["b"], emulated={"a": Emulated(preset="rtx-3090")})
    with (
        LocalSite() as site,
        Deployment(
            site, DEMO_MODEL_PATH, candidate, Settings(), tmp_path / "run", print
        ) as deployment,
    ):
        answer = complete(site, deployment.url, route="split")
    assert answer["timings"]["emulated"] == "rtx-3090"
    assert answer["timings"]["kv_bytes"] > 0
