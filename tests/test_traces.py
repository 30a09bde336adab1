"""Recorded traces: the published forms, and what is wrong with a file, by line."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero.errors import ConfigError
from hetero.workload.mooncake import TraceLine, line_bytes
from hetero.workload.named import load_workload
from hetero.workload.trace import read_trace

# In the published files' forms; Azure's and BurstGPT's are their first lines.
MOONCAKE = (
    '{"timestamp": 0, "input_length": 2290, "output_length": 31, "hash_ids": [0, 42, 43, 44, 45]}\n'
    '{"timestamp": 3052, "input_length": 1024, "output_length": 3, "hash_ids": [0, 46]}\n'
    '{"timestamp": 3052, "input_length": 1025, "output_length": 12, "hash_ids": [0, 46, 47]}\n'
)
AZURE_2023 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:15:46.6805900,374,44\r\n"
    "2023-11-16 18:15:50.9951690,396,109\r\n"
)
AZURE_2024 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2024-05-12 00:00:00+00:00,100,10\n"
    "2024-05-12 00:00:00.250000+00:00,200,20\n"
)
BURSTGPT_1 = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n"
    "45,ChatGPT,1087,230,1317,Conversation log\n"
    "118,GPT-4,417,0,417,API log\n"
    "120,GPT-4,417,276,693,Conversation log\n"
)
BURSTGPT_3 = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "19440110.0,1722ac82-0a46-4bf0-aa08-89794e7a2b3f,43,GPT-4,906,446,1352,Conversation log\n"
    "19440161.0,d5983bf9-4b48-497b-892b-a58995247443,2,ChatGPT,36,29,65,Conversation log\n"
)


@pytest.fixture
def file(tmp_path):
    def write(text, name="trace.any"):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def requests(trace):
    return [(r.at_s, r.prompt_tokens, r.output_tokens) for r in trace.requests]


def test_mooncakes_milliseconds_lengths_and_blocks(file):
    trace = read_trace(file(MOONCAKE))
    assert requests(trace) == [(0, 2290, 31), (3.052, 1024, 3), (3.052, 1025, 12)]
    assert [r.blocks for r in trace.requests] == [(0, 42, 43, 44, 45), (0, 46), (0, 46, 47)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (AZURE_2023, [(0, 374, 44), (4.314579, 396, 109)]),
        (AZURE_2024, [(0, 100, 10), (0.25, 200, 20)]),
        (BURSTGPT_1, [(0, 472, 18), (40, 1087, 230), (115, 417, 276)]),
        (BURSTGPT_3, [(0, 906, 446), (51, 36, 29)]),
    ],
)
def test_azures_and_burstgpts_times_and_lengths(file, text, expected):
    found = requests(read_trace(file(text)))
    assert [row[1:] for row in found] == [row[1:] for row in expected]
    assert [row[0] for row in found] == pytest.approx([row[0] for row in expected], abs=2e-6)


def test_requests_that_failed_are_left_out_and_counted(file):
    assert read_trace(file(BURSTGPT_1)).num_failed == 1


def test_without_hashes_no_prompt_shares_a_block(file):
    schedule = read_trace(file(AZURE_2023)).draw()
    blocks = [session.turns[0].blocks for session in schedule.sessions]
    assert blocks == [(0,), (1,)]


@pytest.mark.parametrize("form", [MOONCAKE, AZURE_2024, BURSTGPT_1])
def test_a_byte_order_mark_and_empty_lines_at_the_end_do_no_harm(file, form):
    marked = read_trace(file(b"\xef\xbb\xbf" + form.encode() + b"\n\n"))
    assert marked.requests == read_trace(file(form)).requests


def line(**changed):
    fields = {"timestamp": 9, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}
    return json.dumps({**fields, **changed}) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: need a request, have an empty file"),
        (BURSTGPT_1.split("\n")[0] + "\n", "line 2: need a request, have the end of the file"),
        ("a,b\n1,2\n", "line 1: need a Mooncake trace .* have 'a,b'"),
        (line() + line(timestamp=3), "line 2: need times that never go back, have 0.006 s before"),
        (line() + "\n" + line(timestamp=3), "line 3: need times that never go back"),
        (line() + '{"timestamp": 10, "inp', "line 2: need a JSON object"),
        (line() + "[]\n", "line 2: need a JSON object"),
        (line() + '{"timestamp": 10, "input_length": 5}\n', "line 2: .*output_length"),
        (line(input_length="600"), "line 1: .*input_length"),
        (line(input_length=0, hash_ids=[]), "line 1: need prompt and output of one token or more"),
        (line(input_length=-600, hash_ids=[]), "line 1: need prompt and output .* have -600 and 5"),
        (line() + line(output_length=0), "line 2: need prompt and output .* have 600 and 0"),
        (line() + line(hash_ids=[1]), "line 2: need 2 hash_ids for 600 tokens, .* have 1"),
        (line(hash_ids=[1, 2, 3]), "line 1: need 2 hash_ids for 600 tokens, .* have 3"),
        (AZURE_2023 + "2023-11-16 18:15:51.0,396\n", "line 4: need 3 fields, have 2"),
        (AZURE_2023 + "yesterday,396,5\n", "line 4: need a date and time .* have 'yesterday'"),
        (AZURE_2023 + "2023-11-16 18:15:40.0,396,5\n", "line 4: need times that never go back"),
        (AZURE_2023 + "2023-11-16 18:16:40.0,many,5\n", "line 4: ContextTokens: .* have 'many'"),
        (AZURE_2023 + "2023-11-16 18:16:40.0,3.5,5\n", "line 4: ContextTokens: .* have '3.5'"),
        (AZURE_2023 + "2023-11-16 18:16:40.0,0,5\n", "line 4: need prompt and output"),
        (BURSTGPT_1 + "soon,GPT-4,1,1,2,API log\n", "line 6: need a time in seconds, have 'soon'"),
        (BURSTGPT_1 + "nan,GPT-4,1,1,2,API log\n", "line 6: need a time, have nan"),
        (BURSTGPT_1 + "7,GPT-4,1,1,2,API log\n", "line 6: need times that never go back"),
        (BURSTGPT_1 + "700,GPT-4,1,-1,2,API log\n", "line 6: need prompt and output"),
        (MOONCAKE.encode() + b"\xff\xfe\n", "line 4: need text, have bytes"),
    ],
)
def test_what_is_wrong_with_a_trace_is_told_by_line(file, text, message):
    path = file(text)
    with pytest.raises(ConfigError, match=message) as refused:
        read_trace(path)
    assert str(refused.value).startswith(f"{path}, line ")


def hundred(file):
    """A request a second, of 1, 2, 3 ... tokens."""
    rows = (f"{2 * i},GPT-4,{i + 1},7,{i + 8},API log\n" for i in range(100))
    return file(BURSTGPT_1.split("\n")[0] + "\n" + "".join(rows))


def test_a_window_a_number_and_a_speed(file):
    path = hundred(file)
    part = read_trace(path, begin_s=20, end_s=40)
    assert [r.prompt_tokens for r in part.requests] == list(range(11, 21))
    assert [r.at_s for r in part.requests] == [2.0 * i for i in range(10)]
    assert [r.prompt_tokens for r in read_trace(path, begin_s=20, first=3).requests] == [11, 12, 13]
    assert [r.at_s for r in read_trace(path, first=3, speed=4).requests] == [0, 0.5, 1]
    with pytest.raises(ConfigError, match="from 500 to inf s, have them up to 198 s"):
        read_trace(path, begin_s=500)


def test_options_of_a_trace_in_text_and_in_a_file_beside_it(file, tmp_path):
    path = hundred(file)
    assert load_workload(str(path)) == read_trace(path)
    text = load_workload(f"trace={path},begin=20,end=40,speed=2")
    assert text == read_trace(path, begin_s=20, end_s=40, speed=2)
    assert load_workload(f"{path},begin=20,end=40,speed=2") == text
    (tmp_path / "part.yaml").write_text(f"trace: {path.name}\nbegin: 20\nend: 40\nspeed: 2\n")
    assert load_workload(str(tmp_path / "part.yaml")) == text


def test_a_rate_stretches_all_times_and_its_own_keeps_them(file):
    trace = read_trace(hundred(file))
    assert trace.rate == 0.5
    own = trace.draw(rate=trace.rate)
    assert [session.at_s for session in own.sessions] == [r.at_s for r in trace.requests]
    fast = trace.draw(rate=5)
    assert [session.at_s for session in fast.sessions] == pytest.approx([i / 5 for i in range(100)])
    assert not trace.draw().is_open


def test_what_exceeds_a_context_is_left_out_and_counted(file):
    trace = read_trace(hundred(file))
    schedule = trace.draw(max_tokens_per_sequence=50)
    assert [s.turns[0].prompt_tokens for s in schedule.sessions] == list(range(1, 44))
    assert schedule.num_dropped == 57
    assert trace.draw(num_requests=5).num_requests == 5
    with pytest.raises(ConfigError, match=r"need a context of 8 tokens .* have 6"):
        trace.draw(max_tokens_per_sequence=6)


def test_a_prompt_length_asked_for_keeps_what_was_shared(file):
    schedule = read_trace(file(MOONCAKE)).draw(prompt_tokens=1500, output_tokens=9)
    blocks = [session.turns[0].blocks for session in schedule.sessions]
    assert blocks[0] == (0, 42, 43)
    assert blocks[1][:2] == (0, 46)
    assert blocks[2] == (0, 46, 47)
    assert blocks[1][2] not in {0, 42, 43, 44, 45, 46, 47}
    assert {session.turns[0].output_tokens for session in schedule.sessions} == {9}


mooncake_lines = st.lists(
    st.tuples(st.integers(0, 10**7), st.integers(1, 5000), st.integers(1, 900), st.booleans()),
    min_size=1,
    max_size=20,
)


@settings(max_examples=80, deadline=None)
@given(mooncake_lines, st.randoms(use_true_random=False))
def test_lines_written_are_the_lines_read(tmp_path_factory, drawn, random):
    lines = [
        TraceLine(
            timestamp=at_ms,
            input_length=prompt,
            output_length=output,
            hash_ids=tuple(random.randrange(50) for _ in range(-(-prompt // 512)))
            if has_ids
            else None,
        )
        for at_ms, prompt, output, has_ids in sorted(drawn)
    ]
    path = tmp_path_factory.mktemp("round") / "trace.jsonl"
    path.write_bytes(b"".join(map(line_bytes, lines)))
    trace = read_trace(path)
    first_ms = lines[0].timestamp
    assert [
        TraceLine(
            timestamp=round(r.at_s * 1000) + first_ms,
            input_length=r.prompt_tokens,
            output_length=r.output_tokens,
            hash_ids=r.blocks,
        )
        for r in trace.requests
    ] == lines
