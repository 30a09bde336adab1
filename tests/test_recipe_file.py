"""Recipe files are read, and refused in words that name the place and the way out."""

import json
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_examples import EXAMPLES, changed, fields, refusals

from hetero.errors import ConfigError
from hetero.experiment.outcome.metrics import METRICS, parse_metric
from hetero.experiment.recipe.found import find_recipe, recipe_files
from hetero.experiment.recipe.load import load_recipe, parse_recipe, recipe_hash
from hetero.experiment.recipe.recipe import LabHost, Quality, Serving, Wire
from hetero.launch.lab.limits import MIN_QUOTA

SERVING, QUALITY, WIRE = (
    next(path for path in EXAMPLES if path.stem == stem)
    for stem in ("serving", "kv-quality", "kv-wire")
)


def refusal_of(path):
    with pytest.raises(ConfigError) as error:
        load_recipe(path)
    return str(error.value)


# Reading.


def test_each_kind_is_read():
    kinds = [type(load_recipe(path)) for path in (SERVING, QUALITY, WIRE)]
    assert kinds == [Serving, Quality, Wire]
    recipe = load_recipe(SERVING)
    assert recipe.candidates["split"].settings == {"route": "split", "seal": "mac"}
    assert recipe.cluster.lab.hosts == {
        "front": LabHost(),
        "back": LabHost(quota=0.5, memory="2GB"),
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_result_has_its_recipe_in_it(tmp_path, path):
    recipe = load_recipe(path)
    result = tmp_path / "result.json"
    result.write_bytes(msgspec.json.encode({"runs": [{"arm": {}}], "recipe": recipe, "then": None}))
    again = load_recipe(result)
    assert again == recipe
    assert recipe_hash(again) == recipe_hash(recipe)


def test_the_hash_is_of_what_is_asked_not_of_how_it_is_written(tmp_path):
    found = fields("kv-wire")
    recipe = parse_recipe(found)
    other_order = parse_recipe(dict(reversed(found.items())))
    with_a_default = parse_recipe(found | {"repetitions": 5})
    hashes = {recipe_hash(each) for each in (recipe, other_order, with_a_default)}
    assert len(hashes) == 1
    assert len(hashes.pop()) == 64
    assert recipe_hash(parse_recipe(found | {"seed": 1})) != recipe_hash(recipe)


def test_of_a_broken_file_the_line_is_named(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("kind: serving\nname: x\n  question: [\n")
    assert refusal_of(path).startswith(f"{path}: line 3: need YAML, have: ")


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("kind: kv-wire\nsettings:\n  kv: f16\n  tokens: 2\n  kv: q8_0\n")
    assert refusal_of(path) == f"{path}: line 5: kv: need it once, have it again"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: &b [1]\nc: *b\n", "line 2: *b: need it written out, have an alias"),
        ("? [a]\n: b\n", "line 1: need text as a key, have a list or a mapping"),
        ("{}", "kind: need one of serving, kv-quality, kv-wire, have none"),
        ("kind: kv-speed", "kind: need one of serving, kv-quality, kv-wire, have 'kv-speed'"),
        ("kind: [1]", "kind: need one of serving, kv-quality, kv-wire, have a list"),
        ("- kind", "need a recipe: keys and values, as docs/recipes.md shows"),
        ("", "need a recipe: keys and values, as docs/recipes.md shows"),
        ("a: !!python/object:os.system x", "line 1: tag:yaml.org,2002:python/object:os.system: n"),
        ("a: !!timestamp x", "line 1: tag:yaml.org,2002:timestamp: need plain YAML, have a tag"),
        ("a: 1\na: !x {}", "line 2: !x: need plain YAML, have a tag"),
        ("a: 1\nb: 2025-13-45", "line 2: need YAML, have: month must be in 1..12"),
        ("[" * 5000, "need a recipe, have lists in lists without end"),
        ("a: 1\nb: \x07", "line 2: need YAML, have: special characters are not allowed"),
        ("x" * 300_000, "need at most 256 KiB, have more: not a recipe"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path, text, complaint):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    assert refusal_of(path).startswith(f"{path}: {complaint}")


def test_files_that_can_not_be_read_are_named(tmp_path):
    nothing = tmp_path / "no.yaml"
    assert refusal_of(nothing) == f"{nothing}: can't read it: no such file or directory"
    assert refusal_of(tmp_path) == (
        f"{tmp_path}: need a file, have a folder; a result's is result.json in it"
    )
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"kind: x\nname: caf\xe9\n")
    assert refusal_of(latin).startswith(f"{latin}: line 2: need UTF-8 text, have ")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{}", "need a result with its `recipe`, have none in it"),
        (b"[1]", "need a result with its `recipe`, have none in it"),
        (b'{"recipe": {"kind": "kv-wi', "need JSON, have: Input data was truncated"),
        (b'{"recipe": 3}', "need a recipe: keys and values, as docs/recipes.md shows"),
    ],
)
def test_a_bad_result_is_refused(tmp_path, content, complaint):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    assert refusal_of(path) == f"{path}: {complaint}"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=8,
    ),
    st.sampled_from(["settings", "vary", "figures", "candidates", "cluster", "model", "plots"]),
)
def test_whatever_stands_there_is_taken_or_refused_in_words(value, field):
    for line in refusals(fields() | {field: value}):
        assert ": " in line


# Types.


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        ("concurency", 3, "concurency: no such key; need one of name, question, vary"),
        ("figurs", {}, "figurs: no such key; did you mean figures?"),
        ("settings.concurency", 3, "settings.concurency: no such setting; did you mean concurrenc"),
        ("candidates.split.prefil", [], "candidates.split.prefil: no such key; did you mean pref"),
        ("candidates.split.prefill", "back", "candidates.split.prefill: need a list, have 'back'"),
        ("candidates.split.decode", ["a b"], "candidates.split.decode[0]: need 1 to 32 lowercase"),
        ("candidates", {}, "candidates: need a mapping, not an empty one, have an empty one"),
        ("candidates", {"A": {"decode": ["front"]}}, "candidates.A: need 1 to 40 lowercase lette"),
        ("settings.threads", 0, "settings.threads: need a whole number >= 1, have 0"),
        ("settings.threads", "2", "settings.threads: need a whole number, have '2'"),
        ("settings.seal", "tls", "settings.seal: need one of none, mac, aead, have 'tls'"),
        ("settings.rate", 0, "settings.rate: need a number > 0.0, have 0"),
        (
            "settings.rate",
            float("inf"),
            "settings.rate: need a finite number of at most 63 bits",
        ),
        ("vary.rate", [10**400], "vary.rate[0]: need a finite number of at most 63 bits"),
        ("load", {"seed": 2**63}, "load.seed: need a finite number of at most 63 bits"),
        ("question", "\ud800", "question: need text, have half a character"),
        ("cluster.lab.hosts.front", None, "cluster.lab.hosts.front: need a mapping, have nothing;"),
        ("cluster.lab.hosts.back.quota", 0.1, "cluster.lab.hosts.back.quota: need a number >= 0."),
        ("cluster.lab.hosts.back.memory", "2g", "cluster.lab.hosts.back.memory: need a size as 4G"),
        (
            "cluster.lab.hosts.back.cpus",
            "x",
            'cluster.lab.hosts.back.cpus: need any, or a list as "',
        ),
        ("cluster.lab.mtu", 9500, "cluster.lab.mtu: need a whole number <= 9216, have 9500"),
        (
            "model.hash",
            "sha256:1",
            "model.hash: need a blake3 digest: 64 digits of 0-9a-f, have 's",
        ),
        ("question", "-", "question: need it, have none"),
        ("question", "", "question: need text, not an empty one, have ''"),
        ("question", True, "question: need text, have true"),
        ("repetitions", 1000, "repetitions: need a whole number <= 100, have 1000"),
        ("figures", {}, "figures: need a mapping, not an empty one, have an empty one"),
        ("figures.gain.kind", "mean", "figures.gain.kind: need one of value, ratio, best, crossin"),
        ("figures.gain.off", {}, "figures.gain.off: no such key; did you mean of?"),
        ("figures.gain.of", "-", "figures.gain.of: need it, have none"),
        ("plots.0.y", "ttft_p50", "plots[0].y: need a list, have 'ttft_p50'"),
        ("vary.kv", [], "vary.kv: need a list, not an empty one, have an empty one"),
        ("vary.kv", ["f16", True], "vary.kv[1]: need a whole number or a number or text, have tr"),
    ],
)
def test_a_wrong_field_is_named(place, value, complaint):
    lines = refusals(changed(place, value))
    assert any(line.startswith(complaint) for line in lines), lines


def test_what_a_file_says_does_not_command_a_terminal():
    (line,) = refusals(fields() | {"\x1b[2J\n": 1})
    assert line.startswith(r"\x1b[2J\n: no such key; ")


def test_every_wrong_field_is_named_at_once():
    found = changed("settings.threads", 0)
    found["candidates"]["split"]["prefil"] = []
    del found["question"]
    assert [line.partition(":")[0] for line in refusals(found)] == [
        "candidates.split.prefil",
        "settings.threads",
        "question",
    ]


def test_what_yaml_takes_for_something_else_is_named(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("kind: serving\ncandidates: {on: {decode: [front]}}\nname: 2026-01-01\n")
    assert refusal_of(path).splitlines() == [
        f'{path}: candidates: need text as a key, have true: write "true"',
        f"{path}: name: need text, have a date: put it in quotes",
    ]


def test_the_smallest_quota_is_the_labs():
    assert not refusals(changed("cluster.lab.hosts.back.quota", MIN_QUOTA))


# What types can't say.


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
            "cluster.lab.rate: need a rate from 50mbit to 40gbit, have '10'",
        ),
        (
            "candidates.single.decode",
            [],
            "candidates.single: need decode hosts, or a peer, have neither",
        ),
        (
            "candidates.llama-server.decode",
            ["front"],
            "candidates.llama-server: need hosts of ours or a peer, have decode and a peer",
        ),
        (
            "candidates.llama-server.peer.host",
            "-",
            "candidates.llama-server.peer.host: need one of front, back, have none",
        ),
        (
            "candidates.split.prefill",
            ["bak"],
            "candidates.split.prefill: no host bak in the lab; did you mean back?",
        ),
        (
            "candidates.split.decode",
            ["front", "front"],
            "candidates.split.decode: need front once, have it again",
        ),
        (
            "candidates.emulated.emulated",
            {"front": {"preset": "p40"}},
            "candidates.emulated.emulated.front: need one of its prefill hosts, have back",
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
            "vary.link_rate[1]: need a rate from 50mbit to 40gbit, have '1000gbit'",
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
        ("beside", "-", "checks[1]: beside.itl_p99: need a load `beside`, have none"),
        (
            "settings",
            {"prompt_tokens": 1000, "output_tokens": 25},
            "arm single, kv f16: context_tokens: need 1025 for prompt_tokens and output_tokens, ha",
        ),
        ("vary.rate", [*range(1, 101)], "arm single, kv f16, rate 1: need concurrency"),
        ("slo", "ttft_p95", "slo: need a time as ttft_p95:2s or ttft_p95:100ms, have 'ttft_p95'"),
        (
            "slo",
            "goodput:2s",
            "slo: need one of ttft, tpot, itl, latency as ttft_p95, have goodput",
        ),
        ("slo", "ttft_p95:2s,tptp_p95:1s", "slo: tptp_p95: no such metric of serving; did you me"),
        ("slo", "late_p95:2s", "slo: need one of ttft, tpot, itl, latency as ttft_p95, have late_"),
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


def test_random_weights_have_no_quality():
    model = {"shape": "llama-3.2-1b"}
    assert refusals(fields("kv-quality") | {"model": model}) == [
        "model.shape: need a model that has learned something: demo or file"
    ]


# Figures, checks, plots.


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        ("figures.gain.metric", "ttft", "figures.gain: ttft: need one number of many, as ttft_p95"),
        (
            "figures.gain.metric",
            "tftt_p95",
            "figures.gain: tftt_p95: no such metric of serving; di",
        ),
        ("figures.gain.metric", "kld_p50", "figures.gain: kld_p50: no such metric of serving; "),
        (
            "figures.gain.metric",
            "cost_per_input_token",
            "figures.gain: cost_per_input_token: need a price, which recipes have none of",
        ),
        (
            "figures.gain.metric",
            "beside.goodput",
            "figures.gain: beside.goodput: the `slo` is of the measured load, not of the one besi",
        ),
        (
            "figures.gain.at",
            {"link_rat": "1gbit"},
            "figures.gain.at.link_rat: nothing varied is called so; did you mean link_rate?",
        ),
        (
            "figures.gain.at",
            {"link_rate": "2gbit"},
            "figures.gain.at.link_rate: need one of 100mbit, 1gbit, have 2gbit",
        ),
        (
            "figures.gain.of",
            {"candidate": "splitt"},
            "figures.gain.of.candidate: need one of single, split, emulated, llama-server, have sp",
        ),
        (
            "figures.gain.at",
            {"link_rate": "1gbit"},
            "figures.gain.of: need one arm, have 2: `at` leaves kv open",
        ),
        ("figures.gain.to", {"candidate": "split"}, "figures.gain.to: need another arm than `of`"),
        (
            "figures.gain.of",
            {"candidate": "split", "kv": "f16"},
            "figures.gain.of: need kv here or in `at`, have it in both",
        ),
        (
            "figures.ttft_alone.at",
            {"kv": "f16"},
            "figures.ttft_alone: need one arm, have 6: `at` leaves candidate and link_rate open",
        ),
        ("figures.best.along", "rate", "figures.best.along: nothing varied is called rate"),
        (
            "figures.best.among",
            "link_rate",
            "figures.best.along: need another than `among`, have l",
        ),
        (
            "figures.best.at",
            {"kv": "f16", "link_rate": "1gbit"},
            "figures.best.along: need all values of link_rate, have 1gbit selected",
        ),
        (
            "figures.best.at",
            {},
            "figures.best: need one arm for each candidate and link_rate, have 2",
        ),
        (
            "figures.break_even.along",
            "kv",
            "figures.break_even.along: need all values of kv, have f",
        ),
        (
            "figures.break_even.to",
            {"candidate": "single"},
            "figures.break_even.to: need one arm for each link_rate, have 2: `at` leaves kv open",
        ),
        ("checks.0", {"at_most": 1}, "checks[0]: need a figure or a metric, have neither"),
        (
            "checks.0",
            {"metric": "throughput", "figure": "gain", "at_most": 1},
            "checks[0]: need a figure or a metric, have both",
        ),
        ("checks.2", {"figure": "gain"}, "checks[2]: need at_least or at_most, have neither"),
        (
            "checks.2",
            {"figure": "gain", "at_least": 2, "at_most": 1},
            "checks[2]: nothing is at least 2 and at most 1",
        ),
        (
            "checks.2",
            {"figure": "gian", "at_least": 2},
            "checks[2].figure: no such figure as gian; did you mean gain?",
        ),
        (
            "checks.2",
            {"figure": "best", "at_least": 2},
            "checks[2].figure: need a number to keep a bound, best says which is best",
        ),
        (
            "checks.2",
            {"figure": "gain", "at_least": 2, "at": {"kv": "f16"}},
            "checks[2].at: need it in the figure, have it in the check",
        ),
        (
            "checks.1.at",
            {"candidat": "split"},
            "checks[1].at.candidat: nothing varied is called so",
        ),
        (
            "plots.0.y",
            ["ttft_p950"],
            "plots[0]: ttft_p950: no such metric of serving; did you mean",
        ),
        ("plots.0.x", "rate", "plots[0].x: nothing varied is called rate"),
        ("plots.0.x", "candidate", "plots[0].x: need a varied setting, have candidate; use bars"),
        ("plots.0.lines", "link_rate", "plots[0].lines: need another than x, have link_rate again"),
        (
            "plots.0.at",
            {},
            "plots[0]: need one arm for each link_rate and candidate, have 2: `at` leaves kv open",
        ),
        ("plots.2.y", "link_rate", "plots[2].y: need another than x, have link_rate again"),
        ("plots.2.value", "exposed", "plots[2]: exposed: need one number of many, as exposed_p95"),
    ],
)
def test_a_question_that_has_no_answer_is_refused(place, value, complaint):
    lines = refusals(changed(place, value))
    assert any(line.startswith(complaint) for line in lines), lines


def test_a_break_even_needs_an_axis_of_numbers():
    found = fields("kv-wire")
    found["vary"]["kv"] = ["f16", "q8_0"]
    crossing = {"kind": "crossing", "along": "kv"} | {
        key: found["figures"]["cost"][key] for key in ("says", "metric", "of", "to")
    }
    found["figures"] = {"even": crossing}
    found["plots"] = []
    assert refusals(found) == [
        "figures.even.along: need numbers above 0, have kv f16",
        "figures.even.along: need numbers above 0, have kv q8_0",
    ]
    found["vary"]["tokens"] = [64]
    crossing |= {"along": "tokens", "at": {"kv": "f16"}}
    assert refusals(found) == ["figures.even.along: need two values or more of tokens, have one"]


# Metrics.


@pytest.mark.parametrize(
    ("name", "base", "statistic", "share", "label"),
    [
        ("ttft_p95", "ttft", "p95", 0.95, "time to first token p95 (s)"),
        ("itl_p99.9", "itl", "p99.9", 0.999, "time between two tokens p99.9 (s)"),
        ("late_max", "late", "max", None, "lateness of the load generator max (s)"),
        ("kv_bytes_mean", "kv_bytes", "mean", None, "cache moved mean (B)"),
        (
            "server_ttft_p50",
            "server_ttft",
            "p50",
            0.5,
            "time to first token, by the server p50 (s)",
        ),
        ("throughput", "throughput", None, None, "output throughput (tokens/s)"),
        ("error_share", "error_share", None, None, "share of requests that failed"),
        ("front-1_cores", "front-1_cores", None, None, "processor time of a node (cores)"),
    ],
)
def test_a_metrics_name_is_taken_apart(name, base, statistic, share, label):
    found = parse_metric("serving", name)
    assert (found.base, found.statistic, found.share) == (base, statistic, share)
    assert (found.key, found.axis_label) == (base, label)


def test_of_the_load_beside():
    found = parse_metric("serving", "beside.ttft_p50")
    assert (found.beside, found.base, found.key) == (True, "ttft", "beside.ttft")
    assert found.axis_label == "time to first token p50 of the load beside (s)"


@pytest.mark.parametrize(
    ("kind", "name", "complaint"),
    [
        ("serving", "throughput_p95", "throughput is one number of a whole run: leave _p95 out"),
        ("serving", "ttft_p0", "need a percentile above 0 and below 100"),
        ("serving", "ttft_p100", "no such metric of serving"),
        ("serving", "beside.router_cores", "processor time is of a process, not of one load"),
        ("kv-wire", "front_cores", "no such metric of kv-wire; did you mean sink_cores or s"),
        ("kv-wire", "beside.restore_p50", "need a load beside for that, have a kv-wire recipe"),
        ("kv-quality", "qqq", "no such metric of kv-quality; docs/recipes.md lists them"),
    ],
)
def test_a_metric_that_there_is_not_is_refused(kind, name, complaint):
    with pytest.raises(ConfigError) as error:
        parse_metric(kind, name)
    assert str(error.value).startswith(f"{name}: {complaint}")


def test_every_metric_can_be_named():
    for kind, metrics in METRICS.items():
        for name, metric in metrics.items():
            found = parse_metric(kind, f"{name}_p50" if metric.sampled else name)
            assert found.metric is metric


# The command.


def hetero(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "hetero", "recipes", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={"PYTHONPATH": str(SERVING.parents[2]), "COLUMNS": "120"},
    )


@pytest.fixture
def project(tmp_path):
    (tmp_path / "recipes").mkdir()
    for path in EXAMPLES:
        (tmp_path / "recipes" / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_recipes_of_the_project_are_listed(project):
    run = hetero(cwd=project)
    assert run.returncode == 0, run.stderr
    header, *rows = run.stdout.splitlines()
    assert header.split() == ["recipe", "kind", "arms", "minutes", "question"]
    assert [row.split()[:6] for row in rows] == [
        ["example-quality", "kv-quality", "6", "x", "1", "-"],
        ["example-wire", "kv-wire", "2", "x", "5", "-"],
        # single 2, split and emulated 4 each, llama-server 1
        ["example-serving", "serving", "11", "x", "3", "4.5"],
    ]
    assert rows[1].rstrip().endswith("What does sealing cost?")


def test_the_list_as_json(project):
    run = hetero("--json", cwd=project)
    (entry,) = (
        each for each in json.loads(run.stdout)["recipes"] if each["name"] == "example-wire"
    )
    assert entry == {
        "file": str(project / "recipes" / "kv-wire.yaml"),
        "errors": [],
        "name": "example-wire",
        "kind": "kv-wire",
        "question": "What does sealing cost?",
        "arms": 2,
        "repetitions": 5,
        "minutes": None,
        "hash": recipe_hash(load_recipe(WIRE)),
    }


def test_files_are_checked(project):
    bad = project / "bad.yaml"
    bad.write_text(WIRE.read_text().replace("tokens: 512", "token: 512"))
    run = hetero("kv-wire", bad, SERVING, cwd=project)
    assert run.returncode == 2
    assert run.stdout.splitlines() == [
        f"{project}/recipes/kv-wire.yaml: ok",
        f"{SERVING}: ok",
    ]
    assert run.stderr == (
        f"hetero: error: {bad}: settings.token: no such setting; did you mean tokens?\n"
    )
    run = hetero(bad, "--json", cwd=project)
    assert run.returncode == 2
    (entry,) = json.loads(run.stdout)["recipes"]
    assert entry == {
        "file": str(bad),
        "errors": [f"{bad}: settings.token: no such setting; did you mean tokens?"],
    }


def test_a_recipe_is_found_by_name(project, monkeypatch):
    assert find_recipe("kv-wire", project) == project / "recipes" / "kv-wire.yaml"
    assert [path.stem for path in recipe_files(project)] == ["kv-quality", "kv-wire", "serving"]
    with pytest.raises(ConfigError) as error:
        find_recipe("kv-wir", project)
    assert str(error.value) == (
        "recipe kv-wir: no such file, and no recipe called so; did you mean kv-wire?"
    )
