"""What a profile found best reaches the nodes."""

import os
from pathlib import Path

import msgspec
import pytest
from node_profiles import node_profile

from hetero.errors import ConfigError
from hetero.launch.cluster_keys import make_cluster_keys
from hetero.launch.cores import share_cpus
from hetero.launch.local import LocalCluster, LocalPlan, _tuned
from hetero.profile.node_profile import RoleSettings
from hetero.serve.config import DecodeConfig
from hetero.serve.pinning import run_on

FOUND = RoleSettings(
    threads=7,
    cpus=[0],
    numa_node=0,
    load="mmap",
    unified=True,
    chunk_tokens=96,
    tried={"7 threads": 0.1},
)
NODE = {
    "name": "n",
    "model": "m.gguf",
    "router": "tcp://127.0.0.1:1",
    "router_key": "k",
    "key": "k",
    "threads": 3,
}


def plan(tmp_path, **changes):
    settings = {"decode": FOUND, "prefill": FOUND}
    whole = {"name": "c", "model": tmp_path, "context_tokens": 64, "settings": settings}
    return LocalPlan(**whole | changes)


def test_a_node_alone_gets_what_was_found_best(tmp_path):
    config = _tuned(DecodeConfig(**NODE), "decode", plan(tmp_path, num_prefill=0), [0], [0, 1])
    assert (config.cpus, config.load, config.unified) == ((0,), "mmap", True)
    assert config.interleave == (0, 1)
    assert config.chunk_tokens == 96
    assert config.threads == 3  # threads are shared out before


def test_what_the_plan_says_comes_first(tmp_path):
    one = plan(tmp_path, num_prefill=0, chunk_tokens=32)
    assert _tuned(DecodeConfig(**NODE, chunk_tokens=32), "decode", one, [], []).chunk_tokens == 32
    bare = plan(tmp_path, settings={})
    assert _tuned(DecodeConfig(**NODE), "decode", bare, [], []) == DecodeConfig(**NODE)


def launched(monkeypatch, tmp_path, whole, num_cores=8):
    """Threads and CPUs of each node that a cluster would start, and what it says."""
    said, configs = [], {}
    cluster = LocalCluster(whole, said.append)
    monkeypatch.setattr("hetero.launch.local.num_usable_cores", lambda: num_cores)
    monkeypatch.setattr(
        cluster, "_launch", lambda name, config, **others: configs.update({name: config})
    )
    prefill = [f"prefill-{index}" for index in range(whole.num_prefill)]
    decode = [f"decode-{index}" for index in range(whole.num_decode)]
    keys = make_cluster_keys(tmp_path / "keys", "c", prefill + decode)
    cluster._launch_engines(prefill, decode, "tcp://127.0.0.1:1", keys)
    return {name: (config.threads, config.cpus) for name, config in configs.items()}, said


def test_a_node_alone_runs_where_it_was_measured(monkeypatch, tmp_path):
    found, said = launched(monkeypatch, tmp_path, plan(tmp_path, num_prefill=0))
    assert (found, said) == ({"decode-0": (7, (0,))}, [])


def test_nodes_that_share_a_machine_get_numa_nodes_of_their_own(monkeypatch, tmp_path):
    numa = [[0, 2, 4, 6], [1, 3, 5, 7]]
    found, said = launched(monkeypatch, tmp_path, plan(tmp_path, numa=numa))
    assert found == {"prefill-0": (3, (0, 2, 4)), "decode-0": (4, (1, 3, 5, 7))}
    assert said == ["2 nodes: cores a NUMA node each, in turn"]


def test_nodes_that_share_one_numa_node_are_not_pinned(monkeypatch, tmp_path):
    found, said = launched(monkeypatch, tmp_path, plan(tmp_path))
    assert found == {"prefill-0": (4, ()), "decode-0": (4, ())}
    assert said == ["2 nodes: cores shared evenly, and not pinned"]


def test_threads_that_are_asked_for_are_given_and_not_pinned(monkeypatch, tmp_path):
    asked = plan(tmp_path, threads=2, numa=[[0], [1]])
    found, _ = launched(monkeypatch, tmp_path, asked)
    assert found == {"prefill-0": (2, ()), "decode-0": (2, ())}


@pytest.mark.parametrize(
    ("num_nodes", "shares"),
    [
        (2, [[0, 1, 2, 3], [10, 11, 12]]),
        (3, [[0, 1], [10, 11, 12], [3, 4]]),
        (4, [[0, 1], [10, 11], [3, 4], [12]]),
    ],
)
def test_numa_nodes_are_shared_out_in_turn(num_nodes, shares):
    assert share_cpus([[0, 1, 2, 3, 4], [10, 11, 12]], num_nodes) == shares


def test_with_fewer_cpus_than_nodes_none_is_without_one_but_the_last():
    assert share_cpus([[0], [1]], 3) == [[0], [1], []]


def test_a_process_runs_where_it_is_told_or_says_why_it_can_not():
    before = os.sched_getaffinity(0)
    try:
        one = min(before)
        run_on([one])
        assert os.sched_getaffinity(0) == {one}
        run_on([])
        assert os.sched_getaffinity(0) == {one}
    finally:
        os.sched_setaffinity(0, before)
    with pytest.raises(ConfigError, match="have 4000-4001,4003, which this process may not use"):
        run_on([4000, 4001, 4003])


@pytest.mark.parametrize("cpus", [[-1], ["a"]])
def test_cpus_of_a_config_are_numbers(cpus):
    with pytest.raises(msgspec.ValidationError, match="cpus"):
        msgspec.convert(NODE | {"cpus": cpus}, DecodeConfig)


def profile_of_here(**changes):
    """One whose CPUs this machine has."""
    profile = node_profile()
    settings = {
        role: msgspec.structs.replace(found, **{"threads": 1, "cpus": []} | changes)
        for role, found in profile.settings.items()
    }
    return msgspec.structs.replace(profile, settings=settings)


@pytest.mark.parametrize(
    ("changes", "need"),
    [({"cpus": [0, 4000]}, "need CPU 4000, which"), ({"threads": 4000}, "need 4000 CPUs, which")],
)
def test_a_profile_of_cpus_that_are_not_here_stops_only_where_it_is_named(
    changes, need, tmp_path, monkeypatch, capsys
):
    from hetero.cli.options import open_model
    from hetero.cli.tuning import found_settings
    from hetero.profile.document import profile_name, write_profile

    monkeypatch.chdir(tmp_path)
    demo, spec = open_model("demo")
    path = Path("profiles") / profile_name(os.uname().nodename, spec.name, spec.quantization)
    write_profile(profile_of_here(**changes), path)
    assert found_settings(None, demo, spec, any_model=True) == {}
    said = capsys.readouterr().err
    assert f"not used: {path}" in said
    assert need in said
    with pytest.raises(ConfigError, match=need):
        found_settings(path, demo, spec, any_model=True)


def test_numa_nodes_are_shared_only_where_one_was_found_best():
    from hetero.cli.tuning import shared_cpus

    assert shared_cpus(profile_of_here(numa_node=None).settings) == []
    usable = [cpu for cpus in shared_cpus(profile_of_here(numa_node=0).settings) for cpu in cpus]
    assert usable
    assert set(usable) <= os.sched_getaffinity(0)


def test_the_profile_of_another_model_is_not_used_unless_asked_for(tmp_path, monkeypatch, capsys):
    from hetero.cli.options import open_model
    from hetero.cli.tuning import found_settings
    from hetero.profile.document import profile_name, write_profile

    monkeypatch.chdir(tmp_path)
    demo, spec = open_model("demo")
    assert found_settings(None, demo, spec, any_model=False) == {}
    other = profile_of_here()
    path = tmp_path / "profiles" / profile_name(os.uname().nodename, spec.name, spec.quantization)
    write_profile(other, path)
    assert found_settings(None, demo, spec, any_model=False) == {}
    assert "not used: profiles/" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="model: need a profile of this model"):
        found_settings(path, demo, spec, any_model=False)
    assert found_settings(path, demo, spec, any_model=True) == other.settings
    assert "may be stale: host: was r730" in capsys.readouterr().err


def test_an_edited_profile_is_not_used(tmp_path):
    from hetero.cli.options import open_model
    from hetero.cli.tuning import found_settings
    from hetero.profile.document import write_profile

    path = tmp_path / "p.yaml"
    write_profile(node_profile(), path)
    path.write_text(path.read_text().replace("host: r730", "host: r740"))
    with pytest.raises(ConfigError, match="host: need what was measured, have it edited"):
        found_settings(path, *open_model("demo"), any_model=True)
