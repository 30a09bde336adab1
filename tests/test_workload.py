"""Distributions against closed forms, and what a drawn schedule must be like."""

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero.errors import ConfigError
from hetero.workload.arrivals import arrival_times
from hetero.workload.builtin import BUILTIN
from hetero.workload.distribution import distribution
from hetero.workload.named import load_workload
from hetero.workload.schedule import num_blocks

DOCS = Path(__file__).parent.parent / "docs" / "workloads.md"

# Shares of a fine grid over all values: their mean is the integral of the quantile function.
GRID = (np.arange(50_000) + 0.5) / 50_000


def mean_of(text):
    return np.mean([distribution(text).value(share) for share in GRID])


def test_a_lognormal_has_the_median_and_the_95th_percentile_it_is_written_with():
    made = distribution("lognormal:900:4000")
    assert made.value(0.5) == pytest.approx(900)
    assert made.value(0.95) == pytest.approx(4000)


def test_a_lognormal_has_the_mean_it_is_written_with():
    made = distribution("lognormal:mean=1500:sigma=0.8")
    assert mean_of("lognormal:mean=1500:sigma=0.8") == pytest.approx(1500, rel=2e-3)
    assert made.value(0.5) == pytest.approx(1500 * math.exp(-0.32))


def test_an_exponential_has_its_mean_and_its_median():
    assert distribution("exponential:30").value(0.5) == pytest.approx(30 * math.log(2))
    assert mean_of("exponential:30") == pytest.approx(30, rel=1e-3)


def test_a_geometric_starts_at_one_and_has_its_mean():
    counts = Counter(distribution("geometric:4").count(share) for share in GRID)
    assert counts[1] / len(GRID) == pytest.approx(1 / 4, abs=1e-4)
    assert counts[2] / len(GRID) == pytest.approx(3 / 16, abs=1e-4)
    assert mean_of("geometric:4") == pytest.approx(4, rel=1e-3)
    assert distribution("geometric:1").count(0.999) == 1


def test_a_uniform_count_takes_every_number_equally_often():
    counts = Counter(distribution("uniform:3-7").count(share) for share in GRID)
    assert sorted(counts) == [3, 4, 5, 6, 7]
    assert max(counts.values()) - min(counts.values()) <= 1


def test_quantiles_are_met_and_linear_in_between():
    made = distribution("quantiles:0=10:50=100:100=1100")
    assert [made.value(share) for share in (0, 0.25, 0.5, 0.75, 1)] == [10, 55, 100, 600, 1100]


def test_values_beyond_the_limits_are_set_to_them():
    made = distribution("lognormal:900:4000:min=200:max=2000")
    assert (made.value(1e-6), made.value(0.5), made.value(1 - 1e-6)) == (200, 900, 2000)


def test_a_count_is_never_less_than_one():
    assert distribution("exponential:0.01").count(0.5) == 1


def test_what_is_drawn_follows_the_distribution():
    random = np.random.default_rng(7)
    drawn = [distribution("lognormal:900:4000").draw_count(random) for _ in range(20_000)]
    assert np.percentile(drawn, [50, 95]) == pytest.approx([900, 4000], rel=0.04)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("many", "need a number, 0 or more, have 'many'"),
        ("-5", "need a number, 0 or more, have '-5'"),
        ("nan", "need a number"),
        ("normal:5:2", "one of uniform, lognormal, .* have 'normal'"),
        ("uniform:10", "need uniform:LOW-HIGH"),
        ("uniform:9-3", "need the lower end first, have 9 to 3"),
        ("lognormal:900", "need lognormal:MEDIAN:P95"),
        ("lognormal:900:800", "need lognormal:MEDIAN:P95"),
        ("lognormal:0:800", "all above 0"),
        ("lognormal:900:4000:most=8000", "need lognormal:MEDIAN:P95"),
        ("exponential:3:4", "need a mean and nothing else"),
        ("geometric:0.5", "need a mean of 1 or more, have 0.5"),
        ("quantiles:0=5:50=3:100=9", "need rising values"),
        ("quantiles:5=5:100=9", "from percentile 0 to 100"),
        ("uniform:1-9:min=8:max=2", "need min below max, have 8 and 2"),
    ],
)
def test_what_is_no_distribution_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        distribution(text)


@pytest.mark.parametrize(
    ("arrivals", "variation"),
    [("poisson", 1.0), ("gamma:1", 1.0), ("gamma:0.25", 2.0), ("gamma:4", 0.5), ("constant", 0.0)],
)
def test_gaps_have_the_mean_rate_and_the_burstiness_they_are_written_with(arrivals, variation):
    times = arrival_times(arrivals, 5.0, 40_000, np.random.default_rng(3))
    gaps = np.diff(times)
    assert times[0] == 0
    assert gaps.mean() == pytest.approx(1 / 5.0, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.05, abs=1e-9)


@pytest.mark.parametrize("arrivals", ["gama:2", "gamma:", "gamma:0", "gamma:inf", "poisson:3", ""])
def test_what_is_no_arrival_process_is_refused(arrivals):
    with pytest.raises(ConfigError, match="need constant, poisson, or gamma:SHAPE"):
        load_workload({"prompt": 5, "arrivals": arrivals})


def turns_of(schedule):
    return [session.turns for session in schedule.sessions]


def test_a_seed_gives_one_schedule_and_another_seed_another():
    chat = BUILTIN["chat"]
    assert chat.draw(5, num_sessions=30, rate=2) == chat.draw(5, num_sessions=30, rate=2)
    assert turns_of(chat.draw(5, num_sessions=30)) != turns_of(chat.draw(6, num_sessions=30))


def test_a_rate_changes_the_times_and_nothing_else():
    closed = BUILTIN["agent"].draw(5, num_sessions=30)
    slow = BUILTIN["agent"].draw(5, num_sessions=30, rate=1)
    fast = BUILTIN["agent"].draw(5, num_sessions=30, rate=4)
    assert turns_of(closed) == turns_of(slow) == turns_of(fast)
    assert not closed.is_open
    times = [session.at_s for session in slow.sessions]
    assert [session.at_s * 4 for session in fast.sessions] == pytest.approx(times)


def test_more_sessions_begin_with_the_same_ones():
    few = BUILTIN["chat"].draw(1, num_sessions=10, rate=1)
    many = BUILTIN["chat"].draw(1, num_sessions=25, rate=1)
    assert turns_of(many)[:10] == turns_of(few)


def test_a_length_asked_for_is_met_and_the_other_stays():
    drawn = load_workload("prompt=lognormal:900:4000,output=uniform:5-90,turns=uniform:1-4")
    plain = drawn.draw(1, num_sessions=40)
    long = drawn.draw(1, num_sessions=40, prompt_tokens=3000)
    short = drawn.draw(1, num_sessions=40, output_tokens=7)
    assert {session.turns[0].prompt_tokens for session in long.sessions} == {3000}
    assert outputs(long) == outputs(plain)
    assert set(outputs(short)) == {7}
    assert [s.turns[0].prompt_tokens for s in short.sessions] == [
        s.turns[0].prompt_tokens for s in plain.sessions
    ]


def outputs(schedule):
    return [turn.output_tokens for session in schedule.sessions for turn in session.turns]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    prefix=st.integers(0, 700),
    prefixes=st.integers(1, 4),
    limit=st.none() | st.integers(2, 3000),
    asked=st.none() | st.integers(1, 900),
)
def test_each_prompt_begins_with_the_one_before_and_its_answer(
    seed, prefix, prefixes, limit, asked
):
    asked = None if limit is not None and asked is not None and asked >= limit else asked
    workload = load_workload(
        {
            "prompt": "lognormal:200:1000",
            "output": "uniform:1-150",
            "turns": "geometric:3",
            "followup": "uniform:1-200",
            "prefix": prefix,
            "prefixes": prefixes,
        }
    )
    schedule = workload.draw(
        seed, num_sessions=8, max_tokens_per_sequence=limit, prompt_tokens=asked
    )
    own = Counter()
    for session in schedule.sessions:
        for turn in session.turns:
            assert len(turn.blocks) == num_blocks(turn.prompt_tokens, schedule.block_tokens)
            assert limit is None or turn.prompt_tokens + turn.output_tokens <= limit
        for before, after in pairwise(session.turns):
            assert after.prompt_tokens > before.prompt_tokens + before.output_tokens
            assert after.blocks[: len(before.blocks)] == before.blocks
        own.update(set(session.turns[-1].blocks))
    shared = round(prefix / schedule.block_tokens) * prefixes
    assert all(count == 1 for block, count in own.items() if block >= shared)


def test_later_turns_wait_and_the_first_does_not():
    schedule = load_workload("turns=3,think=uniform:2-4").draw(0, num_sessions=20)
    for session in schedule.sessions:
        first, *later = (turn.think_s for turn in session.turns)
        assert first == 0
        assert all(2 <= think_s <= 4 for think_s in later)


def test_sessions_with_one_prefix_share_its_whole_blocks_and_no_more():
    schedule = load_workload("prompt=100,prefix=200").draw(0, num_sessions=2)
    one, other = (session.turns[0] for session in schedule.sessions)
    assert one.prompt_tokens == 3 * 64 + 100  # 200 tokens are 3.1 blocks of 64
    assert one.blocks[:3] == other.blocks[:3]
    assert not set(one.blocks[3:]) & set(other.blocks[3:])


def test_prefixes_are_taken_by_zipfs_law():
    schedule = load_workload("prompt=10,prefix=64,prefixes=4,prefix_skew=1").draw(
        2, num_sessions=20_000
    )
    counts = Counter(session.turns[0].blocks[0] for session in schedule.sessions)
    harmonic = 1 + 1 / 2 + 1 / 3 + 1 / 4
    shares = [counts[block] / 20_000 for block in range(4)]
    assert shares == pytest.approx([1 / rank / harmonic for rank in (1, 2, 3, 4)], abs=0.01)


def test_a_shorter_prompt_keeps_the_shared_part_of_it():
    """A quarter of 4096 tokens is text of its own, and so it is of 1024."""
    workload = load_workload("prompt=1024,prefix=3072")
    schedule = workload.draw(0, num_sessions=2, prompt_tokens=1024)
    one, other = (session.turns[0].blocks for session in schedule.sessions)
    assert len(set(one) & set(other)) * 64 == 768


def test_a_context_cuts_first_turns_short_and_ends_sessions_and_says_how_many():
    workload = load_workload("prompt=600,output=100,turns=4,followup=50")
    fits = workload.draw(0, num_sessions=5, max_tokens_per_sequence=900)
    # 600 + 100, 750 + 100, and 900 + 100 does not fit any more.
    assert [len(session.turns) for session in fits.sessions] == [2] * 5
    assert (fits.num_clipped, fits.num_dropped) == (0, 10)
    tight = workload.draw(0, num_sessions=5, max_tokens_per_sequence=300)
    assert {turns[0].prompt_tokens for turns in turns_of(tight)} == {200}
    assert set(outputs(tight)) == {100}
    assert (tight.num_clipped, tight.num_dropped) == (5, 15)


def test_lengths_asked_for_are_refused_rather_than_cut_short():
    with pytest.raises(ConfigError, match="room for 900 \\+ 200 tokens, have a context of 1024"):
        BUILTIN["chat"].draw(
            0, num_sessions=1, prompt_tokens=900, output_tokens=200, max_tokens_per_sequence=1024
        )


@pytest.mark.parametrize("asked", [{"prompt_tokens": 900}, {"output_tokens": 900}])
def test_of_what_does_not_fit_the_length_that_was_not_asked_for_is_cut(asked):
    workload = load_workload("prompt=500,output=500")
    schedule = workload.draw(0, num_sessions=2, max_tokens_per_sequence=1000, **asked)
    turn = schedule.sessions[0].turns[0]
    lengths = {"prompt_tokens": turn.prompt_tokens, "output_tokens": turn.output_tokens}
    assert lengths == {"prompt_tokens": 100, "output_tokens": 100} | asked
    assert schedule.num_clipped == 2


def test_requests_are_counted_to_the_last_one():
    assert BUILTIN["agent"].draw(0, num_requests=37).num_requests == 37
    assert len(BUILTIN["agent"].draw(0, num_sessions=4, num_requests=10_000).sessions) == 4
    with pytest.raises(ConfigError, match="need a number of sessions or of requests"):
        BUILTIN["agent"].draw(0)


@pytest.mark.parametrize("name", BUILTIN)
def test_every_built_in_draws_and_every_number_of_it_is_explained(name):
    schedule = BUILTIN[name].draw(0, num_sessions=50, rate=1)
    assert schedule.name == name
    assert schedule.num_requests >= 50
    section = DOCS.read_text().split(f"### {name}\n")[1].split("\n#")[0]
    for field, written in msgspec.structs.asdict(BUILTIN[name]).items():
        if field not in ("name", "rate"):
            row = f"| `{field}` | `{written}` |"
            is_default = written == getattr(load_workload({}), field)
            assert row in section or is_default, row


def test_azures_lengths_are_what_chat_and_code_draw():
    """Against the medians of the files: 1020 and 129 tokens, and 1469 and 13."""
    chat = BUILTIN["chat"].draw(0, num_sessions=4000)
    code = BUILTIN["code"].draw(0, num_sessions=4000)
    assert np.median([s.turns[0].prompt_tokens for s in chat.sessions]) == pytest.approx(
        1020, rel=0.05
    )
    assert np.median(outputs(chat)) == pytest.approx(129, rel=0.1)
    assert np.median([s.turns[0].prompt_tokens for s in code.sessions]) == pytest.approx(
        1500, rel=0.05
    )
    assert np.median(outputs(code)) == pytest.approx(13, abs=1)


def test_text_a_mapping_and_a_file_say_the_same(tmp_path):
    (tmp_path / "mine.yaml").write_text("prompt: 700\noutput: uniform:1-9\nprefixes: 3\n")
    text = load_workload("prompt=700,output=uniform:1-9,prefixes=3")
    mapping = load_workload({"prompt": 700, "output": "uniform:1-9", "prefixes": 3})
    file = load_workload(str(tmp_path / "mine.yaml"))
    assert file.name == "mine"
    drawn = [turns_of(load.draw(1, num_sessions=5)) for load in (text, mapping, file)]
    assert drawn[0] == drawn[1] == drawn[2]


def test_a_built_in_can_be_taken_with_other_values():
    one_turn = load_workload("chat,turns=1")
    assert one_turn.turns == "1"
    assert one_turn.prompt == BUILTIN["chat"].prompt
    assert load_workload({"like": "chat", "turns": 1}).prompt == BUILTIN["chat"].prompt


def test_a_workload_written_down_is_read_back():
    written = msgspec.json.encode(BUILTIN["agent"])
    assert load_workload(msgspec.json.decode(written)) == BUILTIN["agent"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("chta", "did you mean chat?"),
        ("promt=5", "need a known key, have 'promt'; did you mean prompt?"),
        ("chat,turn=1", "have 'turn'; did you mean turns?"),
        ({"like": "agnet"}, "have 'agnet'; did you mean agent?"),
        ("none.jsonl,speed=2", "or lengths as prompt=512,output=64; there is no such file"),
        ("chta,turns=1", "did you mean chat?"),
        ("zzz=1", "there are name, prompt, output"),
        ("prompt=5,output", "need key=value, have 'output'"),
        ("prompt=5,prompt=6", "have prompt twice"),
        ("prompt=5,prefixes=0", "prefixes"),
        ("prompt=often", "prompt: 'often': need a number, 0 or more"),
        ("output=0", "output: need one or more, have 0"),
        ({"turns": -2}, "turns: '-2': need a number, 0 or more"),
        ("mine.yaml", "mine.yaml: need a file, have: No such file"),
        ("trace=none.jsonl,fist=3", "have 'fist'; did you mean first?"),
    ],
)
def test_what_is_no_workload_is_refused_with_a_way_out(spec, message):
    with pytest.raises(ConfigError) as refused:
        load_workload(spec)
    assert message in str(refused.value)
