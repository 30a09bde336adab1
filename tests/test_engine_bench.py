"""The engine benchmark: that it measures what it says, on models too small for the numbers."""

import json
import os
import subprocess
import sys
from statistics import median

import llama_cpp
import numpy as np
import psutil
import pytest
from llama_reference import Reference
from tiny_models import write_tiny_model

from hetero.errors import ConfigError, EngineError, ModelError
from hetero.experiment.child import node_process, peak_rss_bytes, result_from_child
from hetero.experiment.engine_bench import suite
from hetero.experiment.engine_bench.bare_loop import BareLoop
from hetero.experiment.engine_bench.call_timers import CallTimers
from hetero.experiment.engine_bench.churn import seeded_changes
from hetero.experiment.engine_bench.driven_engine import FIRST_TOKEN, DrivenEngine
from hetero.experiment.engine_bench.settings import full_settings, quick_settings
from hetero.experiment.figures import Figure, at_least, at_most
from hetero.experiment.models import layout_of
from hetero.experiment.turns import ratios, take_turns, timed_steps
from hetero.kv.staging import StagingBlob
from hetero.launch.cluster_keys import make_cluster_keys
from hetero.llama.model import Model
from hetero.profile.quantile import quantile
from hetero.profile.states import States, state_frames
from hetero.serve.config import DecodeConfig
from hetero.serve.start import run_decode

NAMES = {
    *("decode_f16_batch_1", "decode_q8_0_batch_4", "churn", "python_greedy", "python_temperature"),
    *("sampling_greedy", "sampling_temperature_top_k", "sampling_top_p_alone", "restore_0_mb"),
    *("pack_head_dim_64", "pack_head_dim_256", "exposed", "itl_p99", "itl_longest_stall"),
    *("memory_decode", "memory_prefill_torch"),
}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "m.gguf", weight_type="f32")


@pytest.fixture(scope="module")
def states(model_path):
    with Model(model_path) as model:
        yield States(model, layout_of(model_path, "f16"), num_threads=1)


def figure(**changes):
    fields = {
        "name": "f",
        "says": "",
        "value": 1.0,
        "unit": "ratio",
        "target": at_least(1.0),
        "arms": {"a_s": [3.0, 1.0, 2.0]},
    }
    return Figure(**fields | changes)


def test_every_figure_is_measured_and_reported(tmp_path):
    written = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "hetero", "bench", "engine", "--quick", "--json", "-o", written],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads(written.read_text())
    assert report["failures"] == []
    assert set(report["seconds"]) == set(suite.FIGURES)
    assert report["machine"]["cores"] >= 1
    assert report["versions"]["llama-cpp-python"]
    assert report["parameters"]["quick"] is True
    names = [entry["name"] for entry in report["figures"]]
    assert len(names) == len(set(names))
    assert set(names) >= NAMES
    for entry in report["figures"]:
        above = entry["value"] >= entry["target"]["bound"]
        assert entry["met"] == (above if entry["target"]["relation"] == ">=" else not above), entry[
            "name"
        ]
        for samples in entry["arms"].values():
            assert samples["min"] <= samples["median"] <= samples["max"]
            assert samples["median"] == pytest.approx(median(samples["samples"]), rel=1e-4)


def test_the_ceiling_is_announced_before_a_figure(tmp_path):
    said = []
    suite.measure_engines(quick_settings(tmp_path, 1), ["pack"], said.append)
    ceiling = next(i for i, line in enumerate(said) if "ceiling is memcpy" in line)
    assert ceiling < next(i for i, line in enumerate(said) if line.startswith("pack_head_dim"))


def test_an_unknown_figure_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"need some of pack, .*, have speed"):
        suite.measure_engines(quick_settings(tmp_path, 1), ["pack", "speed"], print)


def test_a_figure_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    def broken(settings, say):
        raise EngineError("need a node, have none")

    monkeypatch.setattr(suite, "FIGURES", {"broken": broken, "works": lambda *_: [figure()]})
    report = suite.measure_engines(quick_settings(tmp_path, 1), [], lambda _line: None)
    assert report["failures"] == [{"name": "broken", "error": "need a node, have none"}]
    assert [entry["name"] for entry in report["figures"]] == ["f"]


def test_the_full_sizes_are_those_of_the_targets(tmp_path):
    full = full_settings(tmp_path, 1)
    assert full.batch_sizes == (1, 8, 32)
    assert full.context_tokens == 2000
    assert full.vocabulary_shape.vocab_size == 128256
    assert full.large_shape(6).num_layers == 6
    shape = full.restore_shape
    token_bytes = shape.num_layers * 2 * shape.num_kv_heads * shape.head_dim * 34 // 32
    assert token_bytes >= 64 * 1024
    assert min(full.restore_tokens) * token_bytes >= 64 * 2**20


def test_a_target_is_met_at_its_bound():
    assert at_least(0.98).is_met(0.98)
    assert not at_least(0.98).is_met(0.979)
    assert at_most(1.3).is_met(1.3)
    assert not at_most(1.3).is_met(1.31)


def test_a_figure_keeps_its_samples_beside_their_summary():
    entry = figure(value=0.123456789, target=at_most(0.3)).to_json()
    assert entry["value"] == 0.123457
    assert entry["target"] == {"relation": "<=", "bound": 0.3}
    assert entry["arms"]["a_s"] == {"median": 2, "min": 1, "max": 3, "samples": [3, 1, 2]}


def test_arms_take_turns_and_the_first_round_is_dropped():
    calls = []

    def arm(name):
        def turn():
            calls.append(name)
            return [float(len(calls))]

        return turn

    rounds = take_turns({"a": arm("a"), "b": arm("b")}, 2)
    assert "".join(calls) == "ababab"
    assert rounds == {"a": [[3.0], [5.0]], "b": [[4.0], [6.0]]}


def test_ratios_are_of_each_rounds_medians():
    assert ratios([[1, 2, 9], [4]], [[4], [2, 2]]) == [0.5, 2.0]


def test_a_quantile_is_one_of_the_samples():
    samples = [float(n) for n in range(100, 0, -1)]
    assert quantile(samples, 0.99) == 99
    assert quantile(samples, 0.5) == 50
    assert quantile([7.0], 0.99) == 7


def test_the_step_that_warms_up_is_not_counted():
    calls = []
    assert len(timed_steps(lambda: calls.append(1), 3)) == 3
    assert len(calls) == 4


@pytest.mark.parametrize("num_streams", [1, 3])
@pytest.mark.parametrize("frame_bytes", [1, 5_000, 10**6])
def test_a_states_frames_rebuild_it_byte_for_byte(states, num_streams, frame_bytes):
    blob = states.make(50, num_streams, seed=1)
    staging = StagingBlob(states.layout, 50, num_streams)
    for frame in state_frames(
        blob, states.layout, 50, num_streams, chunk_tokens=20, frame_bytes=frame_bytes
    ):
        staging.place(frame)
    assert staging.is_complete
    assert np.array_equal(staging.blob, blob)


def test_states_differ_by_their_seed_and_hold_finite_rows(states):
    first, second = states.make(100, 1, seed=1), states.make(100, 1, seed=2)
    assert not np.array_equal(first, second)
    for frame in state_frames(first, states.layout, 100, 1, chunk_tokens=100, frame_bytes=2**20):
        assert np.isfinite(frame.rows.view(np.float16)).all()


@pytest.mark.parametrize("unified", [False, True])
def test_the_bare_loop_says_what_llama_says(model_path, states, unified):
    num_tokens = 70
    with (
        Reference(model_path, unified=unified, num_sequences=2) as reference,
        BareLoop(
            reference.model,
            states.layout,
            num_sequences=2,
            tokens_per_sequence=512,
            unified=unified,
            num_threads=1,
        ) as bare,
    ):
        blob = states.make(num_tokens, bare.num_streams, seed=3)
        reference.context.restore_sequence(0, blob)
        logits = reference.step(FIRST_TOKEN, num_tokens)
        expected, _ = reference.greedy(logits, num_tokens + 1, 6)
        bare.restore(0, blob, num_tokens)
        said = []
        for _ in expected:
            bare.step(1)
            said.append(bare.tokens[0])
    assert said == expected


def test_a_bare_loop_refuses_a_state_of_another_cache(model_path, states):
    with (
        Model(model_path) as model,
        BareLoop(
            model,
            states.layout,
            num_sequences=2,
            tokens_per_sequence=256,
            unified=False,
            num_threads=1,
        ) as bare,
        pytest.raises(EngineError, match="restored, have 0"),
    ):
        bare.restore(0, states.make(20, 1, seed=0), 20)


def test_a_driven_engine_knows_how_long_its_sequences_are(model_path, states):
    with DrivenEngine(
        model_path, states.layout, num_slots=2, context_tokens=256, num_threads=1
    ) as driven:
        for seed in range(2):
            driven.arrive(states.make(30, driven.num_streams, seed), 30)
        driven.fill(2)
        assert driven.step() == 2
        # Each cell is a token that was fed: the lengths are those llama.cpp has.
        last = [driven.engine.context.last_position(slot) for slot in range(2)]
        assert [length - 1 for length in driven.lengths.values()] == last
        driven.leave("s0")
        assert driven.step() == 1
        assert list(driven.lengths) == ["s1"]


def test_a_sequence_that_ends_spoils_the_measurement(model_path, states):
    with DrivenEngine(
        model_path, states.layout, num_slots=1, context_tokens=32, num_threads=1
    ) as driven:
        driven.arrive(states.make(30, 1, seed=0), 30)
        with pytest.raises(EngineError, match="need sequences that run on"):
            driven.fill(1)


def test_as_many_leave_as_arrive():
    for seed in range(50):
        changes = seeded_changes(24, 4, np.random.default_rng(seed))
        assert len(changes) == 24
        assert sum(c.num_leaving for c in changes) == sum(c.num_arriving for c in changes)
    again = seeded_changes(24, 4, np.random.default_rng(49))
    assert again == changes


def test_changes_are_as_frequent_as_asked():
    changes = seeded_changes(10_000, 4, np.random.default_rng(0))
    assert sum(c.num_leaving for c in changes) == pytest.approx(2500, rel=0.1)


def test_timers_wrap_functions_and_put_them_back():
    before = llama_cpp.llama_sampler_init_greedy
    with CallTimers("llama_sampler_") as timers:
        assert llama_cpp.llama_sampler_init_greedy is not before
        assert isinstance(llama_cpp.llama_sampler_chain_params, type)
        llama_cpp.llama_sampler_free(llama_cpp.llama_sampler_init_greedy())
        assert timers.num_calls == 2
        timers.reset()
        assert timers.num_calls == 0
    assert llama_cpp.llama_sampler_init_greedy is before


def test_a_node_that_cannot_start_says_why(tmp_path):
    keys = make_cluster_keys(tmp_path / "keys", "router", ["d"])
    config = DecodeConfig(
        name="d",
        model=str(tmp_path / "missing.gguf"),
        router="tcp://127.0.0.1:9",
        router_key=keys.router_key,
        key=str(keys.secret_file("d")),
    )
    with pytest.raises(ModelError, match=r"missing\.gguf"), node_process(run_decode, config):
        pass


def test_a_child_that_dies_is_named():
    with pytest.raises(EngineError, match="_exit: its process ended early"):
        result_from_child(os._exit, 3)


def test_peak_memory_is_at_least_what_is_resident():
    assert peak_rss_bytes(os.getpid()) >= 0.9 * psutil.Process().memory_info().rss
    with pytest.raises(EngineError, match="peak memory"):
        peak_rss_bytes(2**22 + 1)
