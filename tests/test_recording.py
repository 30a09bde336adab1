"""Live traffic as a trace: in order of arrival, nothing of its text, and never in the way."""

import json
import logging
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero.errors import ConfigError
from hetero.workload.block_hasher import BlockHasher
from hetero.workload.trace import read_trace
from hetero.workload.traffic_recorder import TrafficRecorder


@pytest.fixture
def recorder(tmp_path):
    recorder = TrafficRecorder(tmp_path / "traffic.jsonl")
    yield recorder
    recorder.close()


def lines(recorder):
    return [json.loads(line) for line in recorder.path.read_text().splitlines()]


def times(recorder):
    return [line["timestamp"] for line in lines(recorder)]


def text(seed, tokens):
    return random.Random(seed).choices(range(32_000), k=tokens)


def test_a_line_is_what_a_trace_reader_takes(recorder):
    for at_s, tokens in ((100.0, 700), (100.25, 512), (103.5, 1)):
        recorder.arrived(at_s)
        recorder.add(at_s, text(tokens, tokens), 12)
    trace = read_trace(recorder.path)
    assert [r.at_s for r in trace.requests] == [0, 0.25, 3.5]
    assert [r.prompt_tokens for r in trace.requests] == [700, 512, 1]
    assert {r.output_tokens for r in trace.requests} == {12}
    assert recorder.num_recorded == 3


def test_lines_wait_for_what_arrived_before_them(recorder):
    for at_s in (1.0, 2.0, 3.0):
        recorder.arrived(at_s)
    recorder.add(3.0, text(3, 10), 1)
    recorder.add(2.0, text(2, 10), 1)
    assert times(recorder) == []
    recorder.add(1.0, text(1, 10), 1)
    assert times(recorder) == [0, 1000, 2000]


def test_what_failed_holds_up_nothing_and_is_not_recorded(recorder):
    for at_s in (1.0, 2.0, 3.0):
        recorder.arrived(at_s)
    recorder.add(3.0, text(3, 10), 1)
    recorder.drop(1.0)
    recorder.add(2.0, text(2, 10), 0)  # ended before its first token
    assert len(lines(recorder)) == 1
    assert recorder.num_lost == 0


def test_equal_times_do_not_mix_up(recorder):
    recorder.arrived(1.0)
    recorder.arrived(1.0)
    recorder.arrived(2.0)
    recorder.add(2.0, text(2, 10), 1)
    recorder.add(1.0, text(0, 10), 1)
    assert times(recorder) == [0]
    recorder.add(1.0, text(1, 10), 1)
    assert times(recorder) == [0, 0, 1000]


def test_one_that_holds_up_too_many_is_given_up_and_counted(tmp_path, caplog):
    recorder = TrafficRecorder(tmp_path / "traffic.jsonl", max_held=3)
    recorder.arrived(0.0)
    for i in range(1, 6):
        recorder.arrived(float(i))
        recorder.add(float(i), text(i, 10), 1)
    assert times(recorder) == [0, 1000, 2000, 3000, 4000]
    with caplog.at_level(logging.WARNING):
        recorder.add(0.0, text(0, 10), 1)
    assert times(recorder) == [0, 1000, 2000, 3000, 4000]
    assert recorder.num_lost == 1
    assert "lost a request's line" in caplog.text
    recorder.close()


@settings(max_examples=100, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 20), st.sets(st.integers(0, 11)))
def test_any_order_of_ends_gives_a_sorted_trace(tmp_path_factory, ends, max_held, failed):
    path = tmp_path_factory.mktemp("order") / "traffic.jsonl"
    recorder = TrafficRecorder(path, max_held=max_held)
    for i in range(12):
        recorder.arrived(i / 8)
    for i in ends:
        if i in failed:
            recorder.drop(i / 8)
        else:
            recorder.add(i / 8, text(i, 30), 1)
    recorder.close()
    assert times(recorder) == sorted(times(recorder))
    assert recorder.num_recorded + recorder.num_lost == 12 - len(failed)
    assert recorder.num_recorded == len(times(recorder))
    assert max_held < 12 or recorder.num_lost == 0


def test_closing_writes_what_waited(recorder):
    recorder.arrived(1.0)
    recorder.arrived(2.0)
    recorder.add(2.0, text(2, 10), 1)
    recorder.close()
    recorder.close()
    assert len(lines(recorder)) == 1
    recorder.add(3.0, text(3, 10), 1)
    assert recorder.num_lost == 1


def test_a_recording_never_goes_on_in_a_file_that_exists(tmp_path):
    path = tmp_path / "traffic.jsonl"
    path.write_text("mine\n")
    recorders = [TrafficRecorder(path) for _ in range(2)]
    assert [recorder.path.name for recorder in recorders] == ["traffic-2.jsonl", "traffic-3.jsonl"]
    assert path.read_text() == "mine\n"
    for recorder in recorders:
        recorder.close()


def test_a_recording_is_its_owners_alone(recorder):
    assert recorder.path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_made_is_told_at_once(tmp_path):
    with pytest.raises(ConfigError, match="need a file that can be written, have: No such file"):
        TrafficRecorder(tmp_path / "none" / "traffic.jsonl")


FULL_DISK = """
import logging, resource, sys
from pathlib import Path
from hetero.workload.traffic_recorder import TrafficRecorder
logging.basicConfig()
recorder = TrafficRecorder(Path(sys.argv[1]))
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
# Room for some lines and a part of one: as a disk that fills up.
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
for i in range(50):
    recorder.arrived(float(i))
    recorder.add(float(i), list(range(600)), 5)
print(recorder.num_recorded, recorder.num_lost)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
recorder.arrived(60.0)
recorder.add(60.0, list(range(600)), 5)
recorder.close()
"""


def test_a_full_disk_loses_whole_lines_counts_them_and_logs_once(tmp_path):
    path = tmp_path / "traffic.jsonl"
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True
    )
    num_recorded, num_lost = map(int, run.stdout.split())
    assert 0 < num_recorded < 50
    assert num_recorded + num_lost == 50
    assert run.stderr.count("lost a request's line") == 1
    trace = read_trace(path)
    assert [r.at_s for r in trace.requests] == [*map(float, range(num_recorded)), 60.0]


def test_a_killed_process_leaves_every_line_that_was_due(tmp_path):
    path = tmp_path / "traffic.jsonl"
    killed = FULL_DISK.split("hard =")[0] + (
        "import os, signal\n"
        "for i in range(3):\n"
        "    recorder.arrived(float(i)); recorder.add(float(i), [1, 2], 5)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", killed, str(path)], check=False)
    assert len(read_trace(path).requests) == 3


def record(path, prompts):
    recorder = TrafficRecorder(path)
    for i, prompt in enumerate(prompts):
        recorder.arrived(float(i))
        recorder.add(float(i), prompt, 5)
    recorder.close()
    return path.read_bytes()


def test_a_file_depends_on_what_prompts_share_and_not_on_what_they_say(tmp_path):
    """Other text in the same pattern gives the same bytes, so none can be told from them."""
    patterns = []
    for seed in (0, 100):
        a, b, c = (text(seed + i, 1300) for i in range(3))
        patterns.append(record(tmp_path / f"{seed}.jsonl", [a, b, a[:1024] + c, b]))
    assert patterns[0] == patterns[1]


def test_ids_of_two_recordings_have_nothing_to_do_with_each_other():
    """The one prompt is 0 in the one and 5 in the other: ids say in which order blocks came."""
    prompt = text(0, 512)
    assert BlockHasher().ids(prompt) == (0,)
    later = BlockHasher()
    later.ids(text(1, 512 * 5))
    assert later.ids(prompt) == (5,)


def test_the_digests_behind_the_ids_are_keyed(monkeypatch):
    """With one key, two hashers digest alike; with keys of their own, nothing agrees."""
    digests = []
    for _ in range(2):
        hasher = BlockHasher()
        hasher.ids(text(0, 2000))
        digests.append(set(hasher._ids))
    assert not digests[0] & digests[1]
    monkeypatch.setattr("secrets.token_bytes", bytes)
    same = []
    for _ in range(2):
        hasher = BlockHasher()
        hasher.ids(text(0, 2000))
        same.append(set(hasher._ids))
    assert same[0] == same[1]


def test_the_key_is_in_no_file_and_no_repr(tmp_path, monkeypatch):
    key = bytes(range(65, 97))
    monkeypatch.setattr("secrets.token_bytes", lambda count: key[:count])
    written = record(tmp_path / "traffic.jsonl", [text(0, 2000)])
    shown = (repr(BlockHasher()) + repr(vars(TrafficRecorder(tmp_path / "other.jsonl")))).encode()
    for form in (key, key.hex().encode(), str(list(key)).encode()):
        assert form not in written + shown


prompts = st.lists(st.integers(0, 1), max_size=9)


@settings(max_examples=200, deadline=None)
@given(st.lists(prompts, min_size=2, max_size=6))
def test_ids_are_equal_where_everything_up_to_there_is(drawn):
    hasher = BlockHasher(block_tokens=2)
    ids = [hasher.ids(prompt) for prompt in drawn]
    for one, one_ids in zip(drawn, ids, strict=True):
        assert len(one_ids) == -(-len(one) // 2)
        for other, other_ids in zip(drawn, ids, strict=True):
            for place, (a, b) in enumerate(zip(one_ids, other_ids, strict=False)):
                end = 2 * place + 2
                assert (a == b) == (one[:end] == other[:end])
    seen = [number for found in ids for number in found]
    assert set(seen) == set(range(len(set(seen))))


def test_the_block_longest_not_seen_is_forgotten_first():
    hasher = BlockHasher(block_tokens=1, max_blocks=2)
    assert [hasher.ids([token]) for token in (7, 8, 7, 9, 7, 8)] == [
        (0,),
        (1,),
        (0,),
        (2,),
        (0,),
        (3,),
    ]


def test_a_recorder_says_nothing_of_a_prompt(tmp_path, caplog):
    """A token that occurs in no length, time or id is nowhere in the file or the log."""
    with caplog.at_level(logging.DEBUG):
        written = record(tmp_path / "traffic.jsonl", [[98765] * 600, [98765] * 10])
    assert b"98765" not in written
    assert "98765" not in caplog.text
