"""Recipes, and arms as if they had been measured: realistic sizes, known values."""

import numpy as np

from hetero.experiment.outcome.arm_run import ArmRun, Pilot
from hetero.experiment.outcome.result import Result
from hetero.experiment.recipe.arms import arms_of
from hetero.experiment.recipe.load import parse_recipe, recipe_hash


def serving(**fields):
    """A recipe of two candidates, with what a test cares about."""
    candidates = {
        "single": {"decode": ["a"]},
        "split": {"prefill": ["a"], "decode": ["b"]},
    }
    start = {
        "kind": "serving",
        "name": "fair-baseline",
        "question": "Does it pay to split prefill and decode over two hosts?",
        "cluster": {"lab": {"hosts": {"a": {}, "b": {}}}},
        "model": {"demo": True},
        "candidates": candidates,
        "load": "chat",
        "repetitions": 3,
    } | fields
    first = {"candidate": next(iter(start["candidates"]))}
    first |= {name: values[0] for name, values in start.get("vary", {}).items()}
    rate = {"kind": "value", "says": "how fast", "metric": "throughput", "at": first}
    return parse_recipe({"figures": {"rate": rate}} | start)


def run(arm, repetition=0, *, attempt=0, samples=None, scalars=None, marks=()):
    return ArmRun(
        arm=arm,
        repetition=repetition,
        attempt=attempt,
        started="2026-11-22T08:00:00+00:00",
        seconds=12.0,
        scalars={name: float(value) for name, value in (scalars or {}).items()},
        samples={name: [float(each) for each in of] for name, of in (samples or {}).items()},
        pilot=Pilot(before_s={"0": 1.0}, after_s={"0": 1.02}),
        marks=list(marks),
        settings={},
        aiperf={},
        num_records=8,
    )


def runs_of(arm, metric, values):
    """A scalar, a value for each repetition."""
    return [run(arm, number, scalars={metric: float(each)}) for number, each in enumerate(values)]


def result_of(recipe, runs, **fields):
    start = {
        "recipe": recipe,
        "recipe_hash": recipe_hash(recipe),
        "began": "2026-11-22T08:00:00+00:00",
        "ended": "2026-11-22T08:31:00+00:00",
        "machine": "xeon-2-cores",
        "model": {"name": "demo", "hash": "7f" * 32},
        "provenance": {
            "commit": "0123456789abcdef",
            "date": "2026-11-22T08:31:00+00:00",
            "versions": {"hetero": "0.1", "python": "3.11"},
            "machine": {"cpu": "Intel Xeon", "cores": 2, "memory_bytes": 24 * 2**30},
        },
        "facts": {},
        "seeds": {"recipe": 0},
        "arms": list(runs),
    }
    return Result(**(start | fields))


def fair_baseline():
    """Three candidates along seven concurrencies; they cross between 2 and 8."""
    recipe = serving(
        candidates={
            "single": {"decode": ["a"]},
            "replicated": {"decode": ["a", "b"]},
            "split": {"prefill": ["a"], "decode": ["b"]},
        },
        vary={"concurrency": [1, 2, 4, 8, 16, 32]},
        slo="ttft_p95:2s,tpot_p95:100ms",
        figures={
            "winner": {
                "kind": "best",
                "says": "which one has the best goodput",
                "metric": "goodput",
                "along": "concurrency",
            },
            "crossing": {
                "kind": "crossing",
                "says": "sessions at once from which split beats replicated at TTFT",
                "metric": "ttft_p95",
                "of": {"candidate": "split"},
                "to": {"candidate": "replicated"},
                "along": "concurrency",
            },
            "alone": {
                "kind": "value",
                "says": "TTFT of one request on one host",
                "metric": "ttft_p50",
                "at": {"candidate": "single", "concurrency": 1},
            },
            "gain": {
                "kind": "ratio",
                "says": "what splitting makes of ITL under load",
                "metric": "itl_p95",
                "of": {"candidate": "split"},
                "to": {"candidate": "replicated"},
                "at": {"concurrency": 32},
            },
        },
        checks=[
            {"figure": "gain", "at_most": 0.9},
            {"metric": "error_share", "at_most": 0},
            {"metric": "ttft_p95", "at": {"concurrency": 1}, "at_most": 0.2},
        ],
        plots=[
            {
                "kind": "lines",
                "title": "Who serves how many at once",
                "x": "concurrency",
                "y": ["ttft_p95", "itl_p95", "throughput", "goodput"],
                "log_x": True,
                "log_y": True,
            },
            {
                "kind": "bars",
                "title": "Output throughput of the three",
                "x": "concurrency",
                "y": ["throughput"],
                "lines": "candidate",
            },
        ],
        caveats=["One machine, two cores: hosts are namespaces with a core each."],
    )
    generator = np.random.default_rng(3)
    speed = {"single": 1.0, "replicated": 1.9, "split": 1.5}
    runs = []
    for arm in arms_of(recipe):
        name, at_once = arm["candidate"], arm["concurrency"]
        # What splitting saves at load, and costs without.
        saved = 1.1 - 0.15 * np.log2(at_once) if name == "split" else 1.0
        for repetition in range(3):
            luck = np.exp(generator.normal(0, 0.015))
            load = at_once / speed[name]
            ttft = (
                0.12 * luck * saved * (1 + load) * np.exp(generator.normal(0, 0.1, 4 * at_once + 8))
            )
            itl = 0.011 * luck * saved * (1 + 0.3 * load) * np.exp(generator.normal(0, 0.2, 400))
            rate = 90 * speed[name] * luck * at_once / (at_once + 3)
            scalars = {
                "throughput": rate,
                "goodput": rate / 60 / saved,
                "error_share": 0.0,
                "load_cores": 0.03,
                "router_cores": 0.05,
            }
            samples = {"ttft": ttft, "itl": itl, "tpot": itl[:20], "late": ttft / 1000}
            runs.append(run(arm, repetition, samples=samples, scalars=scalars))
    return recipe, runs


def interconnect():
    """Five links for three types of cache; single makes no use of the link."""
    recipe = serving(
        name="interconnect",
        question="From which link on is the transfer hidden?",
        candidates={
            "single": {"decode": ["a"], "ignores": ["wire_ratio"]},
            "split": {"prefill": ["a"], "decode": ["b"], "emulated": {"a": {"preset": "rtx-3090"}}},
        },
        vary={"wire_ratio": [0.1, 0.5, 1, 2, 5], "kv": ["f16", "q8_0", "q4_0"]},
        figures={
            f"break-even-{kv}": {
                "kind": "crossing",
                "says": f"wire ratio up to which splitting wins at TTFT, {kv}",
                "metric": "ttft_p50",
                "of": {"candidate": "split"},
                "to": {"candidate": "single"},
                "along": "wire_ratio",
                "at": {"kv": kv},
            }
            for kv in ("f16", "q8_0", "q4_0")
        },
        plots=[
            {
                "kind": "lines",
                "title": "Exposed transfer and TTFT over the link",
                "x": "wire_ratio",
                "y": ["exposed_p50", "ttft_p50"],
                "lines": "kv",
                "at": {"candidate": "split"},
                "log_x": True,
            },
            {
                "kind": "lines",
                "title": "Split against single, q8_0",
                "x": "wire_ratio",
                "y": ["ttft_p50"],
                "at": {"kv": "q8_0"},
                "log_x": True,
            },
        ],
    )
    generator = np.random.default_rng(4)
    bytes_of = {"f16": 1.0, "q8_0": 0.53, "q4_0": 0.28}
    runs = []
    for arm in arms_of(recipe):
        for repetition in range(3):
            luck = np.exp(generator.normal(0, 0.01))
            scatter = np.exp(generator.normal(0, 0.05, 20))
            if arm["candidate"] == "single":
                samples, marks = {"ttft": 0.9 * luck * scatter}, []
            else:
                exposed = 0.02 + 0.6 * max(0, arm["wire_ratio"] * bytes_of[arm["kv"]] - 0.5)
                samples = {
                    "ttft": (0.6 + exposed) * luck * scatter,
                    "exposed": exposed * luck * scatter,
                }
                marks = ["emulated: rtx-3090"]
            runs.append(run(arm, repetition, samples=samples, marks=marks))
    return recipe, runs


def kv_quality():
    types = ["f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
    recipe = parse_recipe(
        {
            "kind": "kv-quality",
            "name": "kv-quality",
            "question": "What does each type of the cache cost in quality?",
            "model": {"demo": True},
            "vary": {"k": types, "v": types},
            "repetitions": 1,
            "figures": {
                "worst": {
                    "kind": "value",
                    "says": "KL divergence with both in q4_0",
                    "metric": "kld_mean",
                    "at": {"k": "q4_0", "v": "q4_0"},
                }
            },
            "plots": [
                {
                    "kind": "grid",
                    "title": "KL divergence by types of K and V",
                    "x": "k",
                    "y": "v",
                    "value": "kld_mean",
                },
                {
                    "kind": "grid",
                    "title": "Prompts recalled",
                    "x": "k",
                    "y": "v",
                    "value": "recall_share",
                },
            ],
        }
    )
    generator = np.random.default_rng(5)
    runs = []
    for arm in arms_of(recipe):
        loss = 1e-6 * 3.0 ** (types.index(arm["k"]) * 1.3 + types.index(arm["v"]) * 0.6)
        if arm["k"] == arm["v"] == "f16":
            loss = 0.0  # what the others are compared with
        samples = {"kld": loss * np.exp(generator.normal(0, 1, 500))}
        share = max(0.1, 1 - 0.8 * loss)
        runs.append(run(arm, samples=samples, scalars={"recall_share": share}))
    return recipe, runs


def kv_wire():
    recipe = parse_recipe(
        {
            "kind": "kv-wire",
            "name": "kv-wire",
            "question": "What does security cost on the wire?",
            "vary": {
                "seal": ["none", "mac", "aead"],
                "connections": [1, 2, 4],
            },
            "repetitions": 3,
            "figures": {
                "cost": {
                    "kind": "ratio",
                    "says": "goodput with encryption over without",
                    "metric": "bytes_per_s_p50",
                    "of": {"seal": "aead"},
                    "to": {"seal": "none"},
                    "at": {"connections": 1},
                }
            },
            "plots": [
                {
                    "kind": "bars",
                    "title": "What moves, and what it takes",
                    "x": "seal",
                    "y": ["bytes_per_s_p50", "source_cores", "share_of_plain"],
                    "lines": "connections",
                }
            ],
        }
    )
    generator = np.random.default_rng(6)
    speed = {"none": 2.6e9, "mac": 1.8e9, "aead": 1.5e9}
    runs = []
    for arm in arms_of(recipe):
        for repetition in range(3):
            luck = np.exp(generator.normal(0, 0.02))
            rate = speed[arm["seal"]] * luck * arm["connections"] ** 0.2
            samples = {"bytes_per_s": rate * np.exp(generator.normal(0, 0.03, 30))}
            scalars = {"source_cores": 0.4 + 0.5e9 / rate, "share_of_plain": rate / 4e9}
            runs.append(run(arm, repetition, samples=samples, scalars=scalars))
    return recipe, runs
