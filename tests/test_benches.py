"""What a run has ready before its first arm: recordings of emulated hosts, cores for the pilots."""

import os
import sys
from types import SimpleNamespace

import pytest
from recipe_examples import fields

from hetero.experiment.deploy.lab_site import LabSite
from hetero.experiment.deploy.node_configs import prepare_recordings
from hetero.experiment.recipe.load import parse_recipe
from hetero.experiment.recipe.recipe import Lab, LabHost
from hetero.experiment.recipe_run.benches import open_bench
from hetero.model.demo import DEMO_MODEL_PATH

needs_two_cores = pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2,
    reason="each end of a wire has a core",
)
needs_affinity = pytest.mark.skipif(sys.platform != "linux", reason="binds processes to CPUs")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def recipe_with(candidates, vary=None, **others):
    vary = vary or {}
    one_arm = {"candidate": "single"} | {name: values[0] for name, values in vary.items()}
    speed = {"kind": "value", "says": "speed", "metric": "throughput", "at": one_arm}
    found = {
        "name": "small",
        "question": "Is it ready?",
        "kind": "serving",
        "model": {"demo": True},
        "cluster": {},
        "load": {"prompt": "16", "output": "4"},
        "candidates": candidates,
        "vary": vary,
        "figures": {"speed": speed},
    }
    return parse_recipe(found | others)


def test_every_arms_recording_is_there_and_said_before_the_first_arm(tmp_path):
    split = {"prefill": ["a"], "decode": ["b"]}
    recipe = recipe_with(
        {
            "single": {"decode": ["b"]},
            "p40": split | {"emulated": {"a": {"preset": "p40"}}},
            "rtx-3090": split | {"emulated": {"a": {"preset": "rtx-3090"}}},
        },
        settings={"context_tokens": 64},
        vary={"kv": ["f16", "q8_0/q4_0"], "concurrency": [1, 2]},
    )
    said = []
    with open_bench(recipe, SimpleNamespace(path=tmp_path), said.append):
        # Both devices replay the same.
        assert said == ["recording 64 tokens of demo.gguf for emulated devices"] * 2
    made = sorted((tmp_path / "cache/hetero/bench/recordings").iterdir())
    assert len(made) == 2
    prepare_recordings(recipe, DEMO_MODEL_PATH, said.append)
    assert len(said) == 2


@needs_affinity
def test_pilots_fly_where_engines_compute(tmp_path):
    usable = sorted(os.sched_getaffinity(0))
    recipe = recipe_with({"single": {"decode": ["here"]}})
    with open_bench(recipe, SimpleNamespace(path=tmp_path), print) as opened:
        assert opened.cpus == usable
    one = usable[0]
    hosts = {"a": LabHost(cpus=str(one)), "b": LabHost(cpus=str(one), quota=0.5)}
    assert LabSite(Lab(hosts=hosts)).cpus == [one]
    assert LabSite(Lab(hosts=hosts | {"c": LabHost(cpus=None)})).cpus == usable


@needs_two_cores
def test_what_no_clock_decides_has_no_pilots(tmp_path):
    recipe = parse_recipe(fields("kv-quality") | {"model": {"demo": True}})
    with open_bench(recipe, SimpleNamespace(path=tmp_path), print) as opened:
        assert not opened.bench.is_timed
        assert opened.cpus == []
    timed = parse_recipe(fields("kv-wire"))
    with open_bench(timed, SimpleNamespace(path=tmp_path), print) as opened:
        assert opened.bench.is_timed
        assert len(opened.cpus) == 2
