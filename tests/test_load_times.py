"""The load generator's clock against a server that says when it really sent what."""

from pathlib import Path

import numpy as np
import pytest
from stub_server import plan, running_stub, schedule

from hetero.experiment.load.execute import execute
from hetero.experiment.load.metrics import measure

STREAMS = 32
TOLERANCE_S = 0.001
ATTEMPTS = 4
# Of the load's time, spent waiting for a core that somebody else had.
BUSY_SHARE = 0.005


def waited_s():
    """Seconds that this thread was ready to run and had no core."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def delays(outcome, log):
    """Seconds from the stub's sending to our stamp, of each piece."""
    return [
        outcome.began_s + at_s - sent_s
        for record in outcome.records
        for at_s, sent_s in zip(
            record.piece_s, log[f"main-{record.session}-0"]["sent_s"], strict=True
        )
    ]


@pytest.mark.parametrize("token_ms", [10, 20])
def test_32_streams_are_stamped_within_a_millisecond(token_ms):
    for _ in range(ATTEMPTS):
        with running_stub("--first-ms", 40, "--token-ms", token_ms) as stub:
            load = schedule(2 * STREAMS, output_tokens=60)
            before_s = waited_s()
            outcome = execute(plan(stub, load, concurrency=STREAMS, warmup=STREAMS))
            busy_share = (waited_s() - before_s) / outcome.share.seconds
        late_s = delays(outcome, stub.log)
        assert len(late_s) == 2 * STREAMS * 60
        assert min(late_s) >= 0  # one clock
        median_s, p95_s = np.percentile(late_s, (50, 95))
        if p95_s < TOLERANCE_S:
            break
    if p95_s >= TOLERANCE_S and busy_share >= BUSY_SHARE:
        pytest.skip(f"others had the cores for {100 * busy_share:.0f}% of the time")
    assert median_s < TOLERANCE_S
    assert p95_s < TOLERANCE_S

    # What the report says is what the stub did, from when each request was due.
    told = measure(outcome.records)
    true_ttft, true_itl = [], []
    for record in outcome.records:
        sent_s = stub.log[f"main-{record.session}-0"]["sent_s"]
        true_ttft.append(sent_s[0] - outcome.began_s - record.due_s)
        true_itl += list(np.diff(sent_s))
    for share in (50, 95):
        for name, true in (("ttft", true_ttft), ("itl", true_itl)):
            assert np.percentile(told.samples[name], share) == pytest.approx(
                np.percentile(true, share), abs=TOLERANCE_S
            )


def test_the_generator_takes_a_small_share_of_a_core():
    """0.5 ms of processor time a token is 5% of a core at 100 tokens a second; a shared machine's
    caches may double what it takes on a quiet one, 0.06 ms."""
    with running_stub("--first-ms", 20, "--token-ms", 5) as stub:
        load = schedule(STREAMS, output_tokens=100)
        outcome = execute(plan(stub, load, concurrency=STREAMS))
    assert 0 < outcome.share.cpu_s_per_token < 0.0005
    assert outcome.metrics.scalars["load_cores"] == outcome.share.cores


def test_a_queue_in_the_server_is_seen_in_full():
    """One place, a service of 40 ms, a request each 20 ms: the i-th is due at 20 i, served from
    40 i to 40 (i + 1), so it takes 40 + 20 i. A client that waits for an answer before it sends,
    or counts from when it sent at last, sees 40 for each."""
    service_s, every_s, count = 0.040, 0.020, 25
    with running_stub("--first-ms", 30, "--token-ms", 10, "--slots", 1) as stub:
        outcome = execute(plan(stub, schedule(count, every_s=every_s, output_tokens=2)))
    records = sorted(outcome.records, key=lambda record: record.session)
    assert all(record.is_ok for record in records)
    latencies = [record.latency_s for record in records]
    slope, first = np.polyfit(range(count), latencies, 1)
    # A shared machine makes the server's service longer, never shorter.
    entries = [stub.log[f"main-{record.session}-0"] for record in records]
    served = np.mean([entry["sent_s"][-1] - entry["began_s"] for entry in entries])
    assert served >= service_s - 0.001
    assert slope >= service_s - every_s - 0.001
    assert slope == pytest.approx(served - every_s, abs=0.006)
    assert first == pytest.approx(served, abs=0.020)


def test_open_loop_requests_are_sent_when_due_whatever_becomes_of_others():
    with running_stub("--first-ms", 500, "--token-ms", 1) as stub:
        outcome = execute(plan(stub, schedule(20, every_s=0.01, output_tokens=2)))
    records = sorted(outcome.records, key=lambda record: record.session)
    start_s = records[0].due_s
    assert [record.due_s - start_s for record in records] == pytest.approx(
        [0.01 * index for index in range(20)]
    )
    assert records[-1].sent_s < records[0].ended_s  # all were under way at once
    assert min(record.late_s for record in records) >= 0
    assert outcome.share.late_max_s == max(record.late_s for record in records)
