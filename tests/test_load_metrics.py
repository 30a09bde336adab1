"""Records to metrics, by hand; SLOs; costs; AIPerf's shape."""

import msgspec
import pytest

from hetero.errors import ConfigError
from hetero.experiment.load.aiperf import aiperf_export
from hetero.experiment.load.answer import Answer
from hetero.experiment.load.cost import cost_of, price_per_hour
from hetero.experiment.load.metrics import measure, prompt_lengths
from hetero.experiment.load.record import RequestError, RequestRecord
from hetero.experiment.load.slo import Bound, are_met, meets, parse_slo
from hetero.experiment.load.steady import measured, steady_window


def record(due_s, sent_s, piece_s, piece_tokens, ended_s, **more):
    fields = {
        "session": 0,
        "turn": 0,
        "flow": "main",
        "prompt_tokens": 100,
        "output_tokens": sum(piece_tokens),
        **more,
    }
    return RequestRecord(
        due_s=due_s,
        sent_s=sent_s,
        piece_s=piece_s,
        piece_tokens=piece_tokens,
        ended_s=ended_s,
        **fields,
    )


FAILED = RequestError(kind="timeout", says="x")
# Due at 1, 2, 3 and 4; the last ended at 11: a span of 10 seconds.
TRACE = [
    record(1.0, 1.0, (1.5, 2.0, 3.0), (1, 1, 2), 3.0),  # ttft .5, tpot 1.5/3 = .5, latency 2
    record(2.0, 2.5, (4.0, 4.5), (1, 1), 5.0),  # ttft 2, tpot .5, latency 3
    record(3.0, 3.0, (4.0,), (1,), 4.0, counted_prompt_tokens=103),  # ttft 1, no tpot, latency 1
    record(4.0, 4.0, (5.0,), (1,), 11.0, error=FAILED),
]


def test_metrics_of_a_trace_worked_by_hand():
    found = measure(TRACE, parse_slo("ttft_p50:1s,tpot_p95:500ms"))
    assert found.samples["ttft"] == [0.5, 2.0, 1.0]
    assert found.samples["tpot"] == [0.5, 0.5]
    assert found.samples["itl"] == [0.5, 1.0, 0.5]
    assert found.samples["latency"] == [2.0, 2.5, 1.0]
    assert found.samples["late"] == [0.0, 0.5, 0.0, 0.0]
    assert found.scalars == {
        "requests": 4,
        "error_share": 0.25,
        "duration": 10.0,
        "throughput": (4 + 2 + 1) / 10,
        "prompt_throughput": (100 + 100 + 103) / 10,
        "request_rate": 0.3,
        "goodput": 0.2,  # the first and the third; the second's first token was late
        "slo_met": 0.0,  # of .5, 1, 2 and never, the median is 1.5
    }
    assert found.errors == {"timeout": 1}
    lengths = prompt_lengths(TRACE)
    assert (lengths.counted, lengths.exact, lengths.worst) == (1, 0, 3)


def closed_loop(concurrency, seconds, tokens=4):
    """Requests that take so long each, a place's next at once; tokens evenly until its end."""
    free_s = [0.0] * concurrency
    records = []
    for session, took_s in enumerate(seconds):
        place = free_s.index(min(free_s))
        due_s, ended_s = free_s[place], free_s[place] + took_s
        pieces = tuple(due_s + took_s * (index + 1) / tokens for index in range(tokens))
        ones = (1,) * tokens
        records.append(record(due_s, due_s, pieces, ones, ended_s, session=session))
        free_s[place] = ended_s
    return records


def test_of_a_closed_loop_the_part_counts_in_which_every_place_is_taken():
    # One place ends at 1, 2, 3, 4, 5 and 6, the other at 2, 4 and 6; the last begins at 5.
    records = closed_loop(2, [1, 2, 1, 1, 2, 1, 1, 2, 1])
    window = steady_window(records, 2)
    assert (window.begin_s, window.end_s) == (2.0, 5.0)
    found = measure(records, parse_slo("latency_p50:1s"), concurrency=2)
    # Due at 2, 2, 3, 4, 4 and 5; four of them ended by then, and one was half done. While the
    # last one ran, a place was empty.
    assert found.samples["latency"] == [1, 2, 1, 1, 2]
    assert found.per_request == {"itl": [3, 3, 3, 3, 3]}
    assert found.scalars["throughput"] == pytest.approx((4 * 4 + 2) / 3)
    assert found.scalars["request_rate"] == pytest.approx(4 / 3)
    assert found.scalars["goodput"] == pytest.approx(3 / 3)
    assert found.scalars["duration"] == 3


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_a_server_without_a_queue_gives_each_place_its_rate_however_long_the_drain(concurrency):
    slow_last = [1.0] * (4 * concurrency + 3) + [50.0]
    found = measure(closed_loop(concurrency, slow_last), concurrency=concurrency)
    assert found.scalars["throughput"] == pytest.approx(4 * concurrency, rel=0.05)
    whole = measure(closed_loop(concurrency, slow_last))
    assert whole.scalars["throughput"] < 0.5 * 4 * concurrency + 1


def test_answers_that_had_the_server_to_themselves_in_the_end_do_not_count():
    """Whatever they took: which ones they are is a matter of their order."""
    for last in ([0.1] * 3, [9.0] * 3):
        found = measure(closed_loop(4, [1.0] * 24 + last), concurrency=4)
        assert set(found.samples["latency"]) == {1.0}
    alone = measure(closed_loop(1, [1.0] * 8 + [2.0]), concurrency=1)
    assert alone.samples["latency"][-1] == 2.0  # the only place was never empty


def test_no_turn_of_the_last_session_counts():
    """Two places, sessions of three turns but for the second one; places are empty from 8 on."""
    begins = [0.0, 0.0, 2.0, 3.0, 5.0, 6.0]
    records = [
        record(at_s + turn, at_s + turn, (at_s + turn + 1,), (1,), at_s + turn + 1, **names)
        for session, at_s in enumerate(begins)
        for turn in range(2 if session == 1 else 3)
        for names in [{"session": session, "turn": turn}]
    ]
    window = steady_window(records, 2)
    assert (window.begin_s, window.end_s) == (1.0, 6.0)
    counted = [(each.session, each.turn) for each in measured(records, window)]
    assert (4, 2) in counted
    assert not any(session == 5 for session, _ in counted)


def test_a_load_too_short_to_be_steady_is_measured_whole():
    records = closed_loop(4, [1.0] * 8)
    assert steady_window(records, 4) is None
    assert measure(records, concurrency=4).scalars["requests"] == 8


def test_errors_of_the_ramp_count():
    records = closed_loop(1, [1.0] * 8)
    failed = msgspec.structs.replace(records[0], error=FAILED)
    found = measure([failed, *records[1:]], concurrency=1)
    assert found.scalars["error_share"] == 1 / 8
    assert found.errors == {"timeout": 1}


def test_load_beside_counts_apart_and_only_while_the_main_load_runs():
    beside = [
        record(due_s, due_s, (due_s + 1,), (1,), due_s + 1, flow="beside") for due_s in (0.5, 2, 12)
    ]
    found = measure([*TRACE, *beside])
    assert found.samples["beside.ttft"] == [1.0]
    assert found.scalars["beside.requests"] == 1
    assert found.scalars["requests"] == 4
    assert found.samples["ttft"] == [0.5, 2.0, 1.0]


def test_stages_are_what_the_server_told_in_seconds():
    hetero = {"prefill_s": 0.4, "wire_s": 0.1, "ttft_s": 0.5, "kv_bytes": 800, "kv_k": "f16"}
    llama = {"prompt_ms": 400.0, "predicted_per_token_ms": 20.0}
    split = record(0, 0, (1.0,), (1,), 1, stages=hetero, route={"kind": "split"})
    local = record(0, 0, (1.0,), (1,), 1, stages=hetero, route={"kind": "local"})
    other = record(0, 0, (1.0,), (1,), 1, stages=llama)
    samples = measure([split, local, other]).samples
    assert samples["prefill"] == [0.4, 0.4, 0.4]
    assert samples["server_ttft"] == [0.5, 0.5]
    assert samples["wire"] == [0.1]
    assert samples["kv_bytes"] == [800]
    assert samples["server_tpot"] == [0.02]


def test_slo_grammar():
    assert parse_slo("ttft_p95:2s, tpot_mean:100ms,itl_max:1500us") == (
        Bound(metric="ttft", statistic="p95", at_most_s=2.0),
        Bound(metric="tpot", statistic="mean", at_most_s=0.1),
        Bound(metric="itl", statistic="max", at_most_s=0.0015),
    )
    (tail,) = parse_slo("ttft_p99.9:2s")
    assert tail == Bound(metric="ttft", statistic="p99.9", at_most_s=2.0)
    assert are_met([record(0, 0, (1.0,), (1,), 1.0)], [tail])
    assert parse_slo(" ") == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("ttft:2s", "need METRIC_STATISTIC:TIME, as ttft_p95:2s"),
        ("ttft_p95:2", "need METRIC_STATISTIC:TIME"),
        ("ttft_p95:-2s", "need METRIC_STATISTIC:TIME"),
        ("ttft_p95:2s,", "have ''"),
        ("speed_p95:2s", "need a metric of ttft, tpot, itl, latency, have speed"),
        ("ttft_p95:2min", "need a unit of s, ms, us, have min"),
        ("ttft_p95:0s", "need a bound and a percentile above 0"),
    ],
)
def test_wrong_slos_are_named(text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse_slo(text)


def test_failed_requests_break_an_slo_and_two_bounds_of_a_metric_do_not_exclude_each_other():
    good = [record(0, 0, (0.5,), (1,), 1.0)] * 9
    slow = record(0, 0, (1.5,), (1,), 2.0)
    bad = record(0, 0, (), (), 1.0, error=FAILED)
    bounds = parse_slo("ttft_p50:600ms,ttft_p99:2s")
    assert meets(slow, bounds)
    assert are_met([*good, slow], bounds)
    assert not meets(bad, bounds)
    assert not are_met([*good, bad], bounds)
    assert are_met([*good, bad], parse_slo("ttft_p50:600ms"))
    assert not are_met([], bounds)


def test_cost_is_divided_by_the_time_spent_in_each_phase():
    told = {"stages": {"prefill_s": 1.0}, "counted_prompt_tokens": 100}
    records = [record(0, 0, (2.0, 5.0), (1, 1), 5.0, **told)] * 2
    cost = cost_of(records, 3600, 8.0)  # 2 s of prefill, 6 s of decode
    assert (cost.whole, cost.divided_by) == (8.0, "the server's prefill time")
    assert cost.per_input_token == pytest.approx(8.0 / 4 / 200)
    assert cost.per_output_token == pytest.approx(8.0 * 3 / 4 / 4)
    untold = [record(0, 0, (2.0, 5.0), (1, 1), 5.0)]  # 2 s to the first token, 3 s more
    assert cost_of(untold, 3600, 5.0).per_input_token == pytest.approx(2 / 100)
    assert cost_of(untold, 3600, 5.0).divided_by == "time to first token"


def test_prices():
    assert price_per_hour(watts=500, per_kwh=0.3) == pytest.approx(0.15)
    assert price_per_hour(per_hour=2) == 2
    assert price_per_hour() is None
    with pytest.raises(ConfigError, match="need --watts and --kwh-price together"):
        price_per_hour(watts=500)
    with pytest.raises(ConfigError, match="have both"):
        price_per_hour(watts=500, per_kwh=0.3, per_hour=1)


def test_export_has_aiperfs_tags_units_and_fields():
    found = aiperf_export(TRACE, measure(TRACE, parse_slo("ttft_p95:1s")))
    ttft = found["time_to_first_token"]
    assert ttft["unit"] == "ms"
    assert ttft["avg"] == pytest.approx(3500 / 3)
    assert (ttft["min"], ttft["p50"], ttft["max"], ttft["count"]) == (500, 1000, 2000, 3)
    statistics = {"unit", "avg", "min", "max", "std", "count", "sum"}
    shares = {f"p{number}" for number in (1, 5, 10, 25, 50, 75, 90, 95, 99)}
    for tag in (
        *("request_latency", "time_to_first_token", "inter_token_latency"),
        *("output_sequence_length", "input_sequence_length"),
    ):
        assert set(found[tag]) == statistics | shares, tag
    assert found["request_throughput"] == {"unit": "requests/sec", "avg": 0.3}
    assert found["output_token_throughput"] == {"unit": "tokens/sec", "avg": 0.7}
    assert found["benchmark_duration"] == {"unit": "sec", "avg": 10.0}
    assert found["goodput"] == {"unit": "requests/sec", "avg": 0.2}
    assert found["request_count"] == {"unit": "requests", "avg": 3.0}
    assert found["error_request_count"] == {"unit": "requests", "avg": 1.0}
    assert found["error_summary"][0]["count"] == 1
    assert found["was_cancelled"] is False


def answered(*events):
    answer = Answer()
    answer.headed(200)
    for at_s, event in enumerate(events):
        whole = b"data: " + event + b"\r\n\r\n"
        for index in range(len(whole)):  # a byte at a time
            answer.took(at_s, whole[index : index + 1])
    answer.ended(len(events))
    return answer


def test_pieces_have_the_tokens_that_ids_or_usage_tell():
    ids = answered(
        b'{"choices": [{"text": "a", "tokens": [5]}]}',
        b'{"choices": [{"text": "bc", "tokens": [6, 7, 8], "finish_reason": "length"}]}',
        b"[DONE]",
    )
    assert ids.pieces() == ((0, 1), (1, 3))
    merged = answered(
        b'{"choices": [{"text": "a"}]}',
        b'{"choices": [{"text": "bcd"}]}',
        b'{"choices": [{"text": "", "finish_reason": "length"}]}',
        b'{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}',
        b"[DONE]",
    )
    assert merged.pieces() == ((0, 1), (1, 3))
    chat = answered(
        b'{"choices": [{"delta": {"role": "assistant", "content": ""}}]}',
        b'{"choices": [{"delta": {"reasoning_content": "a"}}]}',
        b'{"choices": [{"delta": {"content": "b"}}]}',
        b'{"choices": [{"delta": {}, "finish_reason": "stop"}]}',
        b"[DONE]",
    )
    assert chat.pieces() == ((1, 2), (1, 1))
    assert [each.error for each in (ids, merged, chat)] == [None] * 3
