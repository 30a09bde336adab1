"""In which order a schedule is run, what its prompts are, and the load beside it."""

import itertools
import json

import pytest
from stub_server import one_turn, plan, running_stub, schedule

from hetero.errors import ConfigError, PeerError
from hetero.experiment.load.execute import execute
from hetero.experiment.load.prompts import TextPrompts, TokenPrompts
from hetero.workload.named import load_workload
from hetero.workload.schedule import Schedule, Session, Turn


def sessions(count, think_s=0.0, at_s=None):
    """Each of three turns, a growing conversation."""
    return tuple(
        Session(
            turns=tuple(
                Turn(
                    prompt_tokens=20 * (turn + 1),
                    output_tokens=3,
                    blocks=tuple(10 * index + block for block in range(turn + 1)),
                    think_s=think_s if turn else 0.0,
                )
                for turn in range(3)
            ),
            at_s=at_s,
        )
        for index in range(count)
    )


def by_name(outcome, flow="main"):
    return {(r.session, r.turn): r for r in outcome.records if r.flow == flow}


def test_turns_follow_one_another_after_their_think_time():
    load = Schedule(name="x", sessions=sessions(4, think_s=0.05), block_tokens=20)
    with running_stub("--first-ms", 10, "--token-ms", 5) as stub:
        outcome = execute(plan(stub, load, concurrency=2))
    records = by_name(outcome)
    assert len(records) == len(outcome.records) == 12
    for session in range(4):
        for turn in (1, 2):
            before, record = records[session, turn - 1], records[session, turn]
            assert record.due_s == pytest.approx(before.ended_s + 0.05)
            assert record.sent_s >= record.due_s


def test_a_closed_loop_has_as_many_sessions_at_once_as_there_are_places():
    load = Schedule(name="x", sessions=sessions(9), block_tokens=20)
    with running_stub("--first-ms", 10, "--token-ms", 5) as stub:
        outcome = execute(plan(stub, load, concurrency=3))
    records = by_name(outcome)
    spans = [(records[session, 0].due_s, records[session, 2].ended_s) for session in range(9)]
    for begins_s, _ in spans[:-2]:
        assert sum(begin <= begins_s < end for begin, end in spans) == 3
    # A place's next session is due the moment its last is over.
    ends_s = {end_s for _, end_s in spans}
    assert [begins_s in ends_s for begins_s, _ in spans] == [False] * 3 + [True] * 6


def test_the_load_beside_runs_under_the_whole_main_load_and_begins_nothing_after_it():
    main = schedule(6, output_tokens=10)
    beside = schedule(2, every_s=0.03, output_tokens=4)  # much shorter than the main load
    with running_stub("--first-ms", 10, "--token-ms", 5) as stub:
        outcome = execute(plan(stub, main, beside=beside))
    ours = [record for record in outcome.records if record.flow == "main"]
    theirs = sorted(
        (record for record in outcome.records if record.flow == "beside"),
        key=lambda record: record.due_s,
    )
    first_s, last_s = min(r.due_s for r in ours), max(r.ended_s for r in ours)
    assert theirs[0].ended_s <= first_s
    assert max(record.due_s for record in theirs) <= last_s
    assert all(record.is_ok for record in outcome.records)
    # Sessions go on being numbered, and each repetition is as far from the last as they are.
    assert [record.session for record in theirs] == list(range(len(theirs)))
    gaps_s = [b.due_s - a.due_s for a, b in itertools.pairwise(theirs)]
    assert gaps_s == pytest.approx([0.03] * len(gaps_s))
    assert len(theirs) >= (last_s - first_s) / 0.03
    assert outcome.metrics.scalars["beside.requests"] > 2
    assert outcome.metrics.scalars["requests"] == 5  # of 6: without the first


def test_a_request_beside_that_outlasts_the_main_load_is_waited_for_and_counts():
    """Left out, the slowest would be."""
    beside = schedule(2, every_s=0.03, output_tokens=100)  # each half a second
    with running_stub("--first-ms", 5, "--token-ms", 5) as stub:
        outcome = execute(plan(stub, schedule(8, output_tokens=10), beside=beside))
    last_s = max(r.ended_s for r in outcome.records if r.flow == "main")
    theirs = [record for record in outcome.records if record.flow == "beside"]
    assert sorted(stub.log) == sorted([f"{r.flow}-{r.session}-{r.turn}" for r in outcome.records])
    assert sum(record.ended_s > last_s for record in theirs) > 3
    assert all(record.is_ok and record.due_s <= last_s for record in theirs)


def test_a_duration_repeats_the_schedule_and_begins_nothing_later():
    with running_stub("--first-ms", 5, "--token-ms", 1) as stub:
        outcome = execute(plan(stub, schedule(2), concurrency=2, duration_s=0.3))
    start_s = min(record.due_s for record in outcome.records)
    assert len(outcome.records) > 4
    assert all(record.due_s - start_s < 0.4 for record in outcome.records)
    assert outcome.metrics.errors == {}


def test_warm_up_leaves_no_records_and_no_tokens_in_caches():
    with running_stub("--first-ms", 1, "--token-ms", 1) as stub:
        outcome = execute(plan(stub, schedule(3), warmup=2))
    assert len(outcome.records) == 3
    assert sorted(stub.log) == ["main-0-0", "main-1-0", "main-2-0", "warmup-0", "warmup-1"]


def prompt(prompts, turn, block_tokens=64):
    return json.loads(prompts.json(turn, block_tokens))


def test_equal_blocks_are_equal_tokens_and_others_are_not():
    prompts = TokenPrompts(list(range(100, 200)), seed=1)
    long = prompt(prompts, Turn(prompt_tokens=150, output_tokens=1, blocks=(7, 8, 9)))
    same = prompt(prompts, Turn(prompt_tokens=100, output_tokens=1, blocks=(7, 8)))
    other = prompt(prompts, Turn(prompt_tokens=100, output_tokens=1, blocks=(7, 10)))
    assert (len(long), len(same)) == (150, 100)
    assert same == long[:100]
    assert other[:64] == same[:64]
    assert other[64:] != same[64:]
    again = TokenPrompts(list(range(100, 200)), seed=1)
    assert prompt(again, one_turn(7, prompt_tokens=64)) == long[:64]
    otherwise = TokenPrompts(list(range(100, 200)), seed=2)
    assert prompt(otherwise, one_turn(7, prompt_tokens=64)) != long[:64]


def test_prompts_of_a_drawn_workload_have_their_lengths():
    load = load_workload("agent").draw(3, num_requests=40)
    prompts = TokenPrompts(list(range(50)), seed=0)
    prompts.prepare(load)
    for session in load.sessions:
        for turn in session.turns:
            assert len(prompt(prompts, turn, load.block_tokens)) == turn.prompt_tokens


def test_words_of_several_tokens_fill_a_text_to_the_token_where_one_of_one_exists():
    costs = {"a": 1, "two": 2, "three": 3}
    prompts = TextPrompts(costs, 5, seed=0)
    for length in (6, 20, 100, 131):
        first, *words = prompt(prompts, one_turn(3, prompt_tokens=length), 200).split()
        assert first == "the"
        assert 5 + sum(costs[word] for word in words) == length
    uneven = TextPrompts({"two": 2}, 5, seed=0)
    assert len(prompt(uneven, one_turn(3, prompt_tokens=20), 200).split()) == 1 + 7


@pytest.mark.parametrize(
    ("options", "mode", "kind"),
    [
        ((), "auto", "token ids"),
        (("--kind", "vllm"), "auto", "token ids"),
        (("--kind", "somebody"), "completions", "token ids"),
        (("--text-only",), "auto", "text"),
        (("--text-only",), "completions", "text"),
        ((), "chat", "text"),
    ],
)
def test_prompts_have_exactly_their_length_however_a_server_takes_them(options, mode, kind):
    with running_stub("--first-ms", 1, "--token-ms", 1, *options) as stub:
        load = load_workload("prompt=uniform:20-300,output=2").draw(0, num_requests=12)
        outcome = execute(plan(stub, load, concurrency=4, endpoint=mode))
    assert outcome.prompt_kind == kind
    lengths = outcome.prompt_lengths
    assert (lengths.counted, lengths.exact, lengths.worst) == (12, 12, 0)
    assert outcome.metrics.errors == {}


def test_a_route_is_for_hetero_alone():
    with running_stub() as stub, pytest.raises(ConfigError, match="--route: need a hetero router"):
        execute(plan(stub, schedule(1), route="split"))


def test_a_model_that_is_not_there_is_named():
    with running_stub() as stub, pytest.raises(ConfigError, match="need one of stub, have other"):
        execute(plan(stub, schedule(1), model="other"))


def test_a_server_that_takes_no_prompt_is_quoted():
    with (
        running_stub("--text-only", "--refuse", "no model is loaded") as stub,
        pytest.raises(PeerError, match=r"have 400: .*no model is loaded"),
    ):
        execute(plan(stub, schedule(1)))
