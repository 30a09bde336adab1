"""What a router's recording says of the requests that came, and what it does not."""

import asyncio
import json
import logging
import os
import signal
import stat

import httpx
import pytest
from test_cli import hetero
from test_router import collect, first_token, run, token
from test_up import PATIENCE_S, Up
from tiny_models import write_tiny_model

from hetero.errors import ConfigError, EngineError
from hetero.llama.model import Model
from hetero.messages import Failed, Finished, Generate, Generated
from hetero.workload.trace import read_trace
from hetero.workload.traffic_recorder import TrafficRecorder

# Ids that are found in a text if they are in it.
LONG = tuple(range(70_000, 70_600))
LONGER = LONG[:512] + tuple(range(80_000, 80_800))


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    path = write_tiny_model(tmp_path_factory.mktemp("model") / "m.gguf")
    with Model(path, vocab_only=True) as model:
        yield model.vocab


@pytest.fixture
def recorder(tmp_path):
    recorder = TrafficRecorder(tmp_path / "traffic.jsonl")
    yield recorder
    recorder.close()


async def answer(made, decode, num_tokens, then=None, **request):
    """A request that the decode node reads itself, and what it says: so many tokens, then the end.

    then: a message in place of the end; or "leave": the client goes.
    """
    updates = made.generate(route="local", **request)
    asking = asyncio.create_task(first_token(updates) if then == "leave" else collect(updates))
    await decode.hear(Generate)
    for index in range(num_tokens):
        await decode.say(Generated(tokens=(token(5, index),)))
    if then == "leave":
        await asking
        await updates.aclose()
        return
    await decode.say(then or Finished(request_id="r", choice=0, reason="length"))
    await asking


def failure():
    return Failed(request_id="r", kind="EngineError", message="out of memory")


def test_what_was_answered_is_recorded_and_replays_to_the_same_schedule(vocab, recorder):
    async def scenario(made):
        decode = await made.add("d", "decode")
        await answer(made, decode, 2, prompt=(7, 8, 9))
        await answer(made, decode, 1, then="leave", prompt=LONG)
        with pytest.raises(EngineError):
            await answer(made, decode, 0, then=failure())
        with pytest.raises(ConfigError, match="need 5005 tokens of context"):
            await collect(made.generate(prompt=(1,) * 5000))
        with pytest.raises(EngineError):
            await answer(made, decode, 3, then=failure(), prompt=LONGER)
        await answer(made, decode, 4, prompt=LONG)

    run(scenario, vocab, recorder=recorder)
    recorder.close()
    assert (recorder.num_recorded, recorder.num_lost) == (4, 0)
    lines = [json.loads(line) for line in recorder.path.read_text().splitlines()]
    trace = read_trace(recorder.path)
    schedule = trace.draw(rate=trace.rate)
    turns = [session.turns[0] for session in schedule.sessions]
    sizes = [(turn.prompt_tokens, turn.output_tokens) for turn in turns]
    assert sizes == [(3, 2), (600, 1), (1312, 3), (600, 4)]
    assert [list(turn.blocks) for turn in turns] == [line["hash_ids"] for line in lines]
    short, long, longer, again = (turn.blocks for turn in turns)
    assert longer[0] == long[0]
    assert longer[1] != long[1]
    assert again == long
    assert not {*short} & {*long}
    times_ms = [line["timestamp"] for line in lines]
    assert times_ms[0] == 0
    assert times_ms == sorted(times_ms)
    assert [session.at_s for session in schedule.sessions] == [ms / 1000 for ms in times_ms]


def test_no_token_of_a_prompt_or_an_answer_is_in_the_file(vocab, recorder):
    async def scenario(made):
        decode = await made.add("d", "decode")
        await answer(made, decode, 1, prompt=LONG)

    run(scenario, vocab, recorder=recorder)
    recorder.close()
    text = recorder.path.read_text()
    assert set(json.loads(text)) == {"timestamp", "input_length", "output_length", "hash_ids"}
    assert not any(str(token) in text for token in LONG)
    assert stat.S_IMODE(recorder.path.stat().st_mode) == 0o600


def test_a_full_disk_costs_records_and_no_request(vocab, recorder, caplog):
    os.close(recorder._file)
    recorder._file = os.open("/dev/full", os.O_WRONLY)

    async def scenario(made):
        decode = await made.add("d", "decode")
        for _ in range(2):
            await answer(made, decode, 2)

    with caplog.at_level(logging.WARNING):
        run(scenario, vocab, recorder=recorder)
    assert (recorder.num_recorded, recorder.num_lost) == (0, 2)
    lost = [line for line in caplog.messages if "lost a request's line" in line]
    assert len(lost) == 1
    assert "No space left" in lost[0]


def test_up_records_into_a_file_that_is_new(tmp_path):
    path = tmp_path / "traffic.jsonl"
    path.write_text("another recording\n")
    up = Up(tmp_path, "--port", "0", "--context", "1024", "--record", str(path))
    try:
        for num_tokens in (3, 5):
            body = {"prompt": "amber fox lisbon " * 200, "max_tokens": num_tokens}
            body |= {"ignore_eos": True, "stream": num_tokens == 5}
            url = f"{up.url}/v1/completions"
            assert (
                httpx.post(url, json=body, timeout=PATIENCE_S, trust_env=False).status_code == 200
            )
        body["max_tokens"] = 5000
        assert httpx.post(url, json=body, timeout=PATIENCE_S, trust_env=False).status_code == 400
    finally:
        said = (tmp_path / "stderr").read_text()
        assert up.stop(signal.SIGTERM) == 0
    assert f"router: records its traffic in {tmp_path}/traffic-2.jsonl" in said
    assert path.read_text() == "another recording\n"
    first, second = read_trace(tmp_path / "traffic-2.jsonl").draw().sessions
    assert (first.turns[0].output_tokens, second.turns[0].output_tokens) == (3, 5)
    assert first.turns[0].blocks == second.turns[0].blocks


def test_a_file_that_can_not_be_made_is_said_at_start(tmp_path):
    where = tmp_path / "none" / "traffic.jsonl"
    up = hetero(
        "up", "--local", "--port", "0", "--record", str(where), XDG_RUNTIME_DIR=str(tmp_path)
    )
    assert up.returncode == 2
    assert f"recording {where}: need a file that can be written" in up.stderr
