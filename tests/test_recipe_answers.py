"""Figures, checks and plots that have no answer are refused."""

import pytest
from recipe_examples import changed, fields, refusals


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
