"""Memory on several NUMA nodes in turn: asked of the kernel, and reaching what loads a model."""

import errno
import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from machine_trees import r730, write
from node_profiles import node_profile

from hetero.cli.model import model_path
from hetero.cli.options import open_model
from hetero.cli.tuning import found_settings
from hetero.errors import ConfigError
from hetero.kv.layout import model_layout
from hetero.launch.local import LocalCluster, LocalPlan
from hetero.machine import interleaving
from hetero.machine.interleaving import can_interleave, interleave
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import gguf_to_spec
from hetero.profile.ceilings.worker import Prepare
from hetero.profile.ceilings.workers import Worker
from hetero.profile.document import read_node_profile, write_profile
from hetero.profile.facts.collect import collect_facts
from hetero.profile.node import place as place_module
from hetero.profile.node.cores import engine_cpus
from hetero.profile.node.place import Job, Place, Trial
from hetero.profile.node.points import Domain
from hetero.serve.config import DecodeConfig

allowed = pytest.mark.skipif(not can_interleave(), reason="needs the right to interleave memory")

# Maps a fresh page and says by which policy it lies where it does; a thread of its own, too.
PAGE_POLICY = """
import ctypes, mmap, threading
from hetero.machine.interleaving import interleave

def say_policy():
    page = mmap.mmap(-1, 1 << 20)
    page[:] = bytes(1 << 20)
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    for line in open("/proc/thread-self/numa_maps"):
        if int(line.split()[0], 16) <= start:
            policy = line.split()[1]
    print(policy)

say_policy()
interleave([0])
interleave([])
say_policy()
thread = threading.Thread(target=say_policy)
thread.start()
thread.join()
"""

# Profiles the demo model as if interleaving on node 0 had been found best.
PROFILED_INTERLEAVED = """
import sys
from hetero.cli import main
from hetero.profile.node import run
from hetero.profile.node.place import FoundPlace, Place

run.find_place = lambda *arguments: FoundPlace(Place((0,), None, "read", (0,)), {})
status = main.main(sys.argv[1:])
print({line.split()[1] for line in open("/proc/self/numa_maps")} - {"local"})
sys.exit(status)
"""

# What other systems than Linux lack.
PROFILED_ELSEWHERE = """
import os, sys
import psutil
from hetero.cli import main
from hetero.machine import interleaving

del os.sched_getaffinity, os.sched_setaffinity, psutil.Process.cpu_affinity
interleaving.sys = type("sys", (), {"platform": "darwin", "maxsize": sys.maxsize})
sys.exit(main.main(sys.argv[1:]))
"""

SIZES = ("--budget", "5", "--slots", "2", "--context", "128", "--chunk", "16", "--threads", "1")
PROFILE_DEMO = ("profile", "node", "-m", "demo", *SIZES, "--kv", "q8_0", "-o")


def python(code, *arguments):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def policies_of(pid):
    text = Path(f"/proc/{pid}/numa_maps").read_text()
    # OpenBLAS asks for scratch memory of its own.
    return {line.split()[1] for line in text.splitlines()} - {"local"}


@allowed
def test_pages_that_are_touched_from_then_on_are_interleaved():
    run = python(PAGE_POLICY)
    assert run.stdout.split() == ["default", "interleave:0", "interleave:0"], run.stderr


@allowed
@pytest.mark.parametrize("nodes", [[900], [63, 64, 900]])
def test_nodes_that_are_not_there_are_named(nodes):
    with pytest.raises(ConfigError, match=f"have {', '.join(map(str, nodes))}; measure again"):
        interleave(nodes)


def test_where_it_is_forbidden_the_way_out_is_said(monkeypatch):
    monkeypatch.setattr(interleaving, "_call", lambda *arguments: errno.EPERM)
    assert not can_interleave()
    with pytest.raises(ConfigError, match="operation not permitted; give a container SYS_NICE"):
        interleave([0])
    interleave([])


@pytest.mark.parametrize(
    ("what", "value"),
    [("platform.machine", lambda: "sparc64"), ("sys.platform", "darwin"), ("sys.maxsize", 2**31)],
)
def test_systems_without_it_refuse_and_do_not_crash(monkeypatch, what, value):
    monkeypatch.setattr(f"hetero.machine.interleaving.{what}", value)
    assert not can_interleave()
    with pytest.raises(ConfigError, match="have: function not implemented"):
        interleave([0])


def job(**changes):
    path = model_path("demo")
    layout = model_layout(gguf_to_spec(GGUFFile.open(path)), "q8_0", "q8_0")
    fields = {"domain": Domain(2, 256, 64), "threads": 1}
    return Job(model=path, types=("q8_0", "q8_0"), layout=layout, **fields | changes)


@allowed
@pytest.mark.parametrize(("nodes", "policy"), [((), "default"), ((0,), "interleave:0")])
def test_a_trial_loads_into_the_memory_of_its_place(nodes, policy):
    place = Place((min(os.sched_getaffinity(0)),), None, "read", nodes)
    with closing(Worker(place.cpus)) as worker:
        worker.reply()
        worker.send(Prepare(Trial, (job(), place)))
        worker.reply()
        assert policies_of(worker.pid) == {policy}


@allowed
def test_the_profiler_measures_as_it_found_best_and_says_so(tmp_path):
    path = tmp_path / "p.yaml"
    run = python(PROFILED_INTERLEAVED, *PROFILE_DEMO, path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "{'interleave:0'}"
    settings = read_node_profile(path).settings
    assert {role: found.interleave for role, found in settings.items()} == {
        "decode": [0],
        "prefill": [0],
    }


def test_a_system_that_places_nothing_is_profiled(tmp_path):
    run = python(PROFILED_ELSEWHERE, *PROFILE_DEMO, tmp_path / "p.yaml")
    assert run.returncode == 0, run.stderr
    settings = read_node_profile(tmp_path / "p.yaml").settings
    assert {(found.numa_node, *found.interleave) for found in settings.values()} == {(None,)}


def two_sockets(tmp_path):
    r730(tmp_path)
    write(tmp_path, "proc/self/status", "Cpus_allowed_list:\t0-47")
    return engine_cpus(collect_facts(tmp_path), tmp_path)


BOTH = "all nodes, 24 threads"
SPREAD = "all nodes, interleaved, 24 threads, read"


@pytest.fixture
def pretend(monkeypatch):
    """Seconds of a step by what a place is called, in place of trying; 1 of what is not named."""

    def answer(seconds, *, may=True):
        def tried(place, job, deadline, num_nodes, say):
            words = place_module._words(place, job, num_nodes)
            return dict.fromkeys(("decode", "prefill"), seconds.get(words, 1.0))

        monkeypatch.setattr(place_module, "_tried", tried)
        monkeypatch.setattr(place_module, "can_interleave", lambda: may)

    return answer


@pytest.mark.parametrize(
    ("seconds", "load", "nodes"),
    [
        ({SPREAD: 0.5}, "read", (0, 1)),
        ({SPREAD: 0.97}, "read", ()),
        ({SPREAD: 0.5, f"{BOTH}, mmap": 0.49}, "read", (0, 1)),
        ({SPREAD: 0.5, f"{BOTH}, mmap": 0.2}, "mmap", ()),
        ({f"{BOTH}, read": 0.4, SPREAD: 0.5}, "read", ()),
    ],
)
def test_of_two_sockets_interleaved_memory_is_tried_against_the_best(
    tmp_path, pretend, seconds, load, nodes
):
    cpus = two_sockets(tmp_path)
    pretend(seconds)
    found = place_module.find_place(cpus, [0, 1], job(threads=None), 60.0, lambda line: None)
    assert (found.place.load, found.place.interleave) == (load, nodes)
    assert SPREAD in found.tried["decode"]
    if nodes:
        assert (len(found.place.cpus), found.place.node) == (24, None)


@pytest.mark.parametrize("may", [True, False])
def test_a_model_that_no_node_holds_is_tried_interleaved_where_that_is_allowed(
    tmp_path, pretend, may
):
    cpus = two_sockets(tmp_path)
    pretend({SPREAD: 0.5}, may=may)
    said = []
    found = place_module.find_place(cpus, [], job(threads=None), 60.0, said.append)
    assert found.place.interleave == ((0, 1) if may else ())
    assert f"{BOTH}, mmap" in found.tried["decode"]
    assert any("interleaved memory: not tried" in line for line in said) == (not may)


@pytest.mark.parametrize("may", [True, False])
def test_with_one_node_nothing_is_interleaved(pretend, may):
    pretend({}, may=may)
    said = []
    found = place_module.find_place({0: [0, 1]}, [0], job(threads=None), 60.0, said.append)
    assert found.tried["decode"].keys() == {"2 threads, read", "2 threads, mmap"}
    assert said == []


def test_a_profile_without_the_setting_reads_as_not_interleaved():
    settings = msgspec.to_builtins(node_profile().settings["decode"])
    del settings["interleave"]
    kind = type(node_profile().settings["decode"])
    assert msgspec.convert(settings, kind).interleave == []


def profile_of_here(interleave):
    profile = node_profile()
    changes = {"threads": 1, "cpus": [], "interleave": interleave, "load": "read"}
    settings = {
        role: msgspec.structs.replace(found, **changes) for role, found in profile.settings.items()
    }
    return msgspec.structs.replace(profile, settings=settings)


def plan(settings, **changes):
    whole = {"name": "c", "model": model_path("demo"), "context_tokens": 256, "num_prefill": 0}
    return LocalPlan(settings=settings, **whole | {"prefill": "llama"} | changes)


@allowed
@pytest.mark.parametrize(
    ("num_prefill", "threads", "nodes"), [(0, None, [0]), (0, 1, []), (1, None, [])]
)
def test_a_node_alone_loads_into_interleaved_memory(
    tmp_path, monkeypatch, num_prefill, threads, nodes
):
    """From the profile's file to the process."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = tmp_path / "p.yaml"
    write_profile(profile_of_here([0]), path)
    settings = found_settings(path, *open_model("demo"), any_model=True)
    whole = plan(settings, num_prefill=num_prefill, threads=threads)
    with LocalCluster(whole, lambda line: None) as cluster:
        [pid] = [node.pid for node in cluster.state.nodes if node.name == "decode-0"]
        assert policies_of(pid) == ({"interleave:0"} if nodes else {"default"})


def test_a_profile_of_interleaved_memory_is_not_used_where_that_is_forbidden(tmp_path, monkeypatch):
    path = tmp_path / "p.yaml"
    monkeypatch.setattr(interleaving, "_call", lambda *arguments: errno.EPERM)
    write_profile(profile_of_here([0, 1]), path)
    with pytest.raises(ConfigError, match=re.escape(str(path)) + ": need the right to interleave"):
        found_settings(path, *open_model("demo"), any_model=True)
    write_profile(profile_of_here([]), path)
    assert found_settings(path, *open_model("demo"), any_model=True)


@pytest.mark.parametrize("nodes", [[-1], [1024], ["a"]])
def test_nodes_of_a_config_are_numbers_that_a_machine_can_have(nodes):
    names = {"name": "n", "model": "m", "router": "tcp://127.0.0.1:1", "router_key": "k"}
    with pytest.raises(msgspec.ValidationError, match="interleave"):
        msgspec.convert(names | {"key": "k", "interleave": nodes}, DecodeConfig)
