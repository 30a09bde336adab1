"""Which arms a recipe has, what each is set to, and when it is measured."""

from collections import Counter
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_examples import fields

from hetero.experiment.recipe.arms import (
    arm_text,
    arms_of,
    deployment_of,
    num_arms,
    plan_order,
    selects,
    settings_of,
)
from hetero.experiment.recipe.load import parse_recipe
from hetero.experiment.recipe.recipe import LIVE_SETTINGS, Settings, WireSettings

SERVING = parse_recipe(fields())


def test_arms_stand_in_the_files_order():
    assert arms_of(SERVING) == [
        {"candidate": "single", "kv": "f16"},
        {"candidate": "single", "kv": "q8_0/q4_0"},
        {"candidate": "split", "kv": "f16", "link_rate": "100mbit"},
        {"candidate": "split", "kv": "f16", "link_rate": "1gbit"},
        {"candidate": "split", "kv": "q8_0/q4_0", "link_rate": "100mbit"},
        {"candidate": "split", "kv": "q8_0/q4_0", "link_rate": "1gbit"},
        {"candidate": "emulated", "kv": "f16", "link_rate": "100mbit"},
        {"candidate": "emulated", "kv": "f16", "link_rate": "1gbit"},
        {"candidate": "emulated", "kv": "q8_0/q4_0", "link_rate": "100mbit"},
        {"candidate": "emulated", "kv": "q8_0/q4_0", "link_rate": "1gbit"},
        {"candidate": "llama-server"},
    ]
    assert all(next(iter(arm)) == "candidate" for arm in arms_of(SERVING))
    assert num_arms(SERVING) == 11


def test_arms_without_candidates():
    wire = parse_recipe(fields("kv-wire"))
    assert arms_of(wire) == [{"seal": "none"}, {"seal": "aead"}]
    found = fields("kv-wire") | {"vary": {}, "plots": []}
    found["figures"] = {"fast": {"kind": "value", "says": "it", "metric": "bytes_per_s_p50"}}
    alone = parse_recipe(found)
    assert arms_of(alone) == [{}]
    assert num_arms(alone) == 1


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        (
            {"candidate": "single", "kv": "f16"},
            Settings(kv="f16", concurrency=2, requests=8, beside_rate=0.5),
        ),
        (
            {"candidate": "split", "kv": "q8_0/q4_0", "link_rate": "1gbit"},
            Settings(
                kv="q8_0/q4_0",
                concurrency=2,
                requests=8,
                beside_rate=0.5,
                link_rate="1gbit",
                route="split",
                seal="mac",
            ),
        ),
        # It ignores the varied KV type: the recipe's counts.
        (
            {"candidate": "llama-server"},
            Settings(kv="q8_0", concurrency=2, requests=8, beside_rate=0.5),
        ),
    ],
)
def test_settings_are_the_recipes_then_the_candidates_then_the_varied(arm, expected):
    assert settings_of(SERVING, arm) == expected


def test_settings_have_their_types():
    found = fields("kv-wire")
    found["vary"] = {"tokens": [64, 128]}
    found["figures"]["cost"] |= {"of": {"tokens": 64}, "to": {"tokens": 128}}
    found["plots"] = []
    wire = parse_recipe(found)
    assert settings_of(wire, {"tokens": 64}) == WireSettings(tokens=64, seconds=1)
    found = fields()
    del found["settings"]["concurrency"]
    found["vary"]["rate"] = [1]
    (rate,) = {settings_of(parse_recipe(found), arm).rate for arm in arms_of(parse_recipe(found))}
    assert isinstance(rate, float)


@pytest.mark.parametrize(
    ("selection", "is_selected"),
    [
        ({}, True),
        ({"candidate": "single"}, True),
        ({"candidate": "split"}, False),
        ({"kv": "f16"}, True),
        ({"kv": "q8_0"}, False),
        ({"kv": "f16", "link_rate": "1gbit"}, True),  # which single ignores
        ({"candidate": "split", "link_rate": "1gbit"}, False),
    ],
)
def test_an_ignored_setting_has_any_value(selection, is_selected):
    assert selects({"candidate": "single", "kv": "f16"}, selection) is is_selected


def test_what_changes_while_a_cluster_is_up():
    assert set(Settings.__struct_fields__) >= LIVE_SETTINGS
    arm = {"candidate": "split", "kv": "f16", "link_rate": "1gbit", "concurrency": 4}
    assert deployment_of(arm) == {"candidate": "split", "kv": "f16"}


def test_an_arm_in_words():
    assert arm_text({"candidate": "split", "kv": "f16", "rate": 2}) == "split, kv f16, rate 2"
    assert arm_text({"seal": "none"}) == "seal none"
    assert arm_text({}) == "the only arm"


def test_an_order_by_hand():
    a1, a2, b1, b2 = ({"candidate": name, "rate": rate} for name in "ab" for rate in (1, 2))
    # The file has them mixed; clusters are brought up once each, and once more going back.
    first = plan_order([a1, b1, a2, b2], 3, seed=0)
    there = [arm for arm, repetition in first if repetition == 0]
    assert there in ([a1, a2, b1, b2], [b1, b2, a1, a2])
    assert first == (
        [(arm, 0) for arm in there]
        + [(arm, 1) for arm in reversed(there)]
        + [(arm, 2) for arm in there]
    )
    orders = {str(plan_order([a1, b1, a2, b2], 1, seed)) for seed in range(20)}
    assert len(orders) == 2


def as_text(arm):
    return str(sorted(arm.items()))


ARMS = st.lists(
    st.fixed_dictionaries(
        {"candidate": st.sampled_from("abc")},
        optional={
            "kv": st.sampled_from(["f16", "q8_0"]),
            "rate": st.integers(1, 3),
            "link_rate": st.sampled_from(["100mbit", "1gbit"]),
        },
    ),
    unique_by=as_text,
    max_size=20,
)


@given(arms=ARMS, repetitions=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_each_arm_once_a_repetition_and_its_deployment_at_a_stretch(arms, repetitions, seed):
    order = plan_order(arms, repetitions, seed)
    assert [repetition for _, repetition in order] == [
        repetition for repetition in range(repetitions) for _ in arms
    ]
    for repetition in range(repetitions):
        measured = [arm for arm, when in order if when == repetition]
        assert Counter(map(as_text, measured)) == Counter(map(as_text, arms))
        stretches = [key for key, _ in groupby(as_text(deployment_of(arm)) for arm in measured)]
        assert len(stretches) == len(set(stretches))
    assert order == plan_order(arms, repetitions, seed)


@given(arms=ARMS, seed=st.integers(0, 2**32 - 1))
def test_a_steady_drift_favours_no_arm(arms, seed):
    """Over two repetitions, the mean place of every arm is the middle."""
    order = plan_order(arms, 2, seed)
    for arm in arms:
        places = [place for place, (each, _) in enumerate(order) if each == arm]
        assert sum(places) == len(order) - 1
