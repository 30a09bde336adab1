"""Recipes that can't be run are refused: names that there are not, settings that exclude others."""

import pytest
from recipe_examples import changed, fields, refusals


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        ("model", {}, "model: need one of demo, file, shape, have none"),
        (
            "model",
            {"demo": True, "shape": "llama-3.2-1b"},
            "model: need one of demo, file, shape, have demo and shape",
        ),
        (
            "model",
            {"file": "a.gguf"},
            "model.hash: need the blake3 of the file, so that others use the same: `b3sum FILE`",
        ),
        (
            "model",
            {"demo": True, "hash": "0" * 64},
            "model.hash: need a file it is of, have none",
        ),
        (
            "model",
            {"demo": True, "seed": 3},
            "model: quant and seed are of a shape's random weights, have a demo",
        ),
        ("model.quant", "q4_k_x", "model.quant: no such quant as q4_k_x; did you mean q4_k_m"),
        ("model.shape", "lama-3.2-1b", "model.shape: shape 'lama-3.2-1b': no such shape, near: ll"),
        (
            "model.shape",
            "llama-3.2-1b-q8_0",
            "model.shape: need llama-3.2-1b alone, have llama-3.2-1b-q8_0; its quant, q8_0, is of",
        ),
        (
            "cluster",
            {"file": "cluster.yaml"},
            "cluster.file: real hosts come with `hetero up`; use a lab, or leave it out",
        ),
        (
            "cluster.lab.rate",
            "10",
            "cluster.lab.rate: need a rate from 5mbit to 40gbit, have '10'",
        ),
        (
            "candidates.single.decode",
            [],
            "candidates.single: need decode hosts, or a peer, have neither",
        ),
        (
            "candidates.llama-server.decode",
            ["main"],
            "candidates.llama-server: need hosts of ours or a peer, have decode and a peer",
        ),
        (
            "candidates.llama-server.peer.host",
            "-",
            "candidates.llama-server.peer.host: need one of main, back, have none",
        ),
        (
            "candidates.split.prefill",
            ["bak"],
            "candidates.split.prefill: no host bak in the lab; did you mean back?",
        ),
        (
            "candidates.split.decode",
            ["main", "main"],
            "candidates.split.decode: need main once, have it again",
        ),
        (
            "cluster.lab.hosts",
            {"front": {}, "main": {}, "back": {}},
            "cluster.lab.hosts.front: need another name, have front, where router and load",
        ),
        (
            "candidates.emulated.emulated",
            {"main": {"preset": "p40"}},
            "candidates.emulated.emulated.main: need one of its prefill hosts, have back",
        ),
        (
            "candidates.emulated.emulated.back.preset",
            "rtx-309",
            "candidates.emulated.emulated.back: preset 'rtx-309': no such preset, near: rtx-3090",
        ),
        (
            "vary.concurency",
            [1, 2],
            "vary.concurency: no such setting; did you mean concurrency?",
        ),
        (
            "vary.candidate",
            ["a"],
            "vary.candidate: candidates are varied as they are: leave it out",
        ),
        ("vary.threads", [1, "two"], "vary.threads[1]: need a whole number, have 'two'"),
        ("vary.rate", [1, 1.0], "vary.rate: need 1.0 once, have it again"),
        ("vary.kv", ["f16", "q9_0"], "vary.kv[1]: KV type 'q9_0': need one of f16, bf16"),
        ("vary.kv", ["f16", "f16/f16/f16"], "vary.kv[1]: need a type, or two as q8_0/q4_0, have"),
        (
            "vary.link_rate",
            ["100mbit", "1000gbit"],
            "vary.link_rate[1]: need a rate from 5mbit to 40gbit, have '1000gbit'",
        ),
        ("settings.kv", "q9_0", "settings.kv: KV type 'q9_0': need one of f16, bf16"),
        (
            "candidates.split.settings",
            {"chunk_token": 64},
            "candidates.split.settings.chunk_token: no such setting; did you mean chunk_tokens",
        ),
        (
            "candidates.split.settings",
            {"slots": 0},
            "candidates.split.settings.slots: need a whole number >= 1, have 0",
        ),
        (
            "candidates.split.settings",
            {"kv": "f16"},
            "candidates.split.settings.kv: it is varied, and that counts; let the candidate ignore",
        ),
        (
            "candidates.single.ignores",
            ["link_rat"],
            "candidates.single.ignores: no varied setting link_rat; did you mean link_rate?",
        ),
        (
            "candidates.single.ignores",
            ["kv", "kv"],
            "candidates.single.ignores: need kv once, have it again",
        ),
        (
            "settings.rate",
            2,
            "arm single, kv f16: need concurrency (closed loop) or rate (open loop), have both",
        ),
        (
            "settings.wire_ratio",
            0.5,
            "arm split, kv f16, link_rate 100mbit: need link_rate or wire_ratio, have both",
        ),
        (
            "cluster",
            {},
            "arm split, kv f16, link_rate 100mbit: link_rate: need a lab for that, have this mach",
        ),
        ("beside", {"prompt_tokens": 512}, "beside: workload by hand: need a known key, have 'pro"),
        (
            "settings.beside_rate",
            "-",
            "beside: need a setting beside_rate above 0 in some arm, have none, so it never runs",
        ),
        (
            "settings.beside_rate",
            0,
            "beside: need a setting beside_rate above 0 in some arm, have none, so it never runs",
        ),
        ("load", "chta", "load: workload 'chta': need a built-in (chat, document, code, agent), a"),
        ("load", "prompt=0,output=8", "load: workload prompt=0,output=8: prompt: need one or more"),
        ("load", {"prompt": 64, "ouput": 8}, "load: workload by hand: need a known key, have 'ou"),
        ("load", {"like": ["chat"]}, "load.like: need "),
        ("load", "no.jsonl", "load: workload 'no.jsonl': need a built-in (chat, document, code, a"),
        ("load", "no.yaml", "load: workload no.yaml: need a file, have: No such file or directory"),
        ("load", {"trace": "no.jsonl"}, "load: no.jsonl: "),
        ("beside", "-", "checks[1]: beside.itl_p99: need a load `beside`, have none"),
        (
            "settings",
            {"prompt_tokens": 1000, "output_tokens": 25},
            "arm single, kv f16: context_tokens: need 1025 for prompt_tokens and output_tokens, ha",
        ),
        ("vary.rate", [*range(1, 101)], "arm single, kv f16, rate 1: need concurrency"),
        (
            "slo",
            "ttft_p95",
            "slo: need METRIC_STATISTIC:TIME, as ttft_p95:2s, with a metric of ttft, tpot, itl, la",
        ),
        ("slo", "ttft_p95:2s,late_p95:2s", "slo late_p95:2s: need a metric of ttft, tpot, itl, la"),
        ("slo", "ttft_p00.0:2s", "slo ttft_p00.0:2s: need a bound and a percentile above 0"),
        ("slo", "", "figures.best: goodput: need an `slo`, have none"),
    ],
)
def test_a_recipe_that_can_not_be_run_is_refused(place, value, complaint):
    lines = refusals(changed(place, value))
    assert any(line.startswith(complaint) for line in lines), lines


def test_too_many_arms_are_counted_not_listed():
    found = fields("kv-wire")
    found["vary"] |= {name: [*range(1, 1001)] for name in ("tokens", "frame_bytes", "seconds")}
    assert refusals(found) == ["vary: need at most 10000 arms, have 2000000000"]


def test_front_is_not_a_name_for_this_machine():
    found = changed("cluster", {})
    found["candidates"]["single"]["decode"] = ["front"]
    complaint = "need another name, have front, where router and load generator run"
    assert refusals(found) == [f"candidates.single.decode: {complaint}"]


def test_a_trace_is_looked_for_where_the_user_stands(tmp_path, monkeypatch):
    found = changed("load", "day.jsonl")
    assert len(refusals(found)) == 1
    (tmp_path / "day.jsonl").write_text(
        '{"timestamp": 0, "input_length": 8, "output_length": 2, "hash_ids": [0]}\n'
    )
    monkeypatch.chdir(tmp_path)
    assert refusals(found) == []


WIRE_RATIO = "wire_ratio: need prefill hosts, whose speed it is measured by, have none; let the ca"


def test_a_wire_ratio_needs_prefill_hosts():
    found = fields()
    found["vary"] = {"wire_ratio": [0.5, 1]}
    found["candidates"] = {
        "single": {"decode": ["main"], "ignores": ["wire_ratio"]},
        "split": {"prefill": ["back"], "decode": ["main"]},
    }
    at = {"candidate": "split", "wire_ratio": 1}
    found["figures"] = {"ttft": {"kind": "value", "says": "it", "metric": "ttft_p50", "at": at}}
    found["checks"] = found["plots"] = []
    assert refusals(found) == []
    found["candidates"]["single"]["settings"] = {"wire_ratio": 1}
    (line,) = refusals(found)
    assert line.startswith(f"arm single: {WIRE_RATIO}")
    found["candidates"]["single"] = {"decode": ["main"]}
    (line,) = refusals(found)
    assert line.startswith(f"arm single, wire_ratio 0.5: {WIRE_RATIO}")


def test_a_model_of_ones_own_needs_texts_to_read():
    model = {"file": "a.gguf", "hash": "0" * 64}
    assert refusals(fields("kv-quality") | {"model": model}) == [
        "texts: need UTF-8 files for a model other than the demo, have none"
    ]


def test_random_weights_have_no_quality():
    model = {"shape": "llama-3.2-1b"}
    assert refusals(fields("kv-quality") | {"model": model}) == [
        "model.shape: need a model that has learned something: demo or file"
    ]
