"""What a profile found best reaches the nodes."""

import os

import msgspec
import pytest
from node_profiles import node_profile

from hetero.errors import ConfigError
from hetero.launch.local import LocalPlan, _tuned
from hetero.profile.node_profile import RoleSettings
from hetero.serve.config import DecodeConfig, PrefillConfig
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
    config = _tuned(DecodeConfig(**NODE), "decode", plan(tmp_path, num_prefill=0))
    assert (config.cpus, config.load, config.unified) == ((0,), "mmap", True)
    assert config.chunk_tokens == 96
    assert config.threads == 3  # threads are shared out before


def test_what_the_plan_says_comes_first(tmp_path):
    one = plan(tmp_path, num_prefill=0, chunk_tokens=32)
    assert _tuned(DecodeConfig(**NODE, chunk_tokens=32), "decode", one).chunk_tokens == 32
    assert _tuned(DecodeConfig(**NODE), "decode", plan(tmp_path, settings={})) == DecodeConfig(
        **NODE
    )


def test_nodes_that_share_a_machine_are_not_pinned_to_the_same_cpus(tmp_path):
    both = plan(tmp_path)
    assert _tuned(DecodeConfig(**NODE), "decode", both).cpus == ()
    prefill = _tuned(PrefillConfig(**NODE), "prefill", both)
    assert (prefill.cpus, prefill.load, prefill.chunk_tokens) == ((), "mmap", None)


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


def test_the_profile_of_another_model_is_not_used_unless_asked_for(tmp_path, monkeypatch, capsys):
    from hetero.cli.model import model_path
    from hetero.cli.tuning import found_settings
    from hetero.profile.document import profile_name, write_profile

    monkeypatch.chdir(tmp_path)
    demo = model_path("demo")
    assert found_settings(None, demo, "demo", any_model=False) == {}
    other = node_profile()
    path = tmp_path / "profiles" / profile_name(os.uname().nodename, "demo")
    write_profile(other, path)
    assert found_settings(None, demo, "demo", any_model=False) == {}
    assert "not used: profiles/" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="model: need a profile of this model"):
        found_settings(path, demo, "demo", any_model=False)
    assert found_settings(path, demo, "demo", any_model=True) == other.settings
    assert "may be stale: host: was r730" in capsys.readouterr().err


def test_an_edited_profile_is_not_used(tmp_path):
    from hetero.cli.model import model_path
    from hetero.cli.tuning import found_settings
    from hetero.profile.document import write_profile

    path = tmp_path / "p.yaml"
    write_profile(node_profile(), path)
    path.write_text(path.read_text().replace("host: r730", "host: r740"))
    with pytest.raises(ConfigError, match="host: need what was measured, have it edited"):
        found_settings(path, model_path("demo"), "demo", any_model=True)
