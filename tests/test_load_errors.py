"""Whatever a server does, each request leaves one record, which says what went wrong."""

import asyncio
import socket
from contextlib import asynccontextmanager, suppress

import pytest
from stub_server import one_turn, plan, running_stub, schedule

from hetero.errors import ConfigError, PeerError
from hetero.experiment.load.client import Client
from hetero.experiment.load.endpoint import Endpoint, parse_url
from hetero.experiment.load.execute import execute
from hetero.experiment.load.generator import Target, run_load
from hetero.experiment.load.plan import LoadPlan
from hetero.experiment.load.prompts import TokenPrompts
from hetero.workload.schedule import Schedule, Session


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def run(url, load, *, concurrency, timeout_s=30):
    """Without asking the server what it is."""
    planned = LoadPlan(url=url, schedule=load, concurrency=concurrency)
    endpoint = Endpoint(url=parse_url(url), server="llamacpp", model="m")

    async def all_of_it():
        client = Client(endpoint, timeout_s=timeout_s)
        try:
            target = Target(client, endpoint, TokenPrompts(list(range(9)), seed=0))
            return await run_load(target, planned)
        finally:
            await client.close()

    return asyncio.run(all_of_it())


@pytest.mark.parametrize(
    ("fail", "kind", "says", "num_pieces"),
    [
        ("status", "status", "no slot is free", 0),
        ("server", "server", "the engine fell over", 2),
        ("stream", "stream", "closed", 2),
        ("garbage", "stream", "event: need a chunk", 2),
        ("short", "short", "need 8 tokens, have 4", 4),
    ],
)
def test_failures_are_told_apart(fail, kind, says, num_pieces):
    with running_stub("--first-ms", 1, "--token-ms", 1, "--fail", fail) as stub:
        outcome = execute(plan(stub, schedule(6, output_tokens=8), concurrency=3))
    assert sorted(record.session for record in outcome.records) == list(range(6))
    for record in outcome.records:
        assert record.error.kind == kind
        assert says in record.error.says
        assert len(record.piece_s) == num_pieces
        assert record.error.status == (503 if kind == "status" else None)
        assert record.ended_s >= record.sent_s >= record.due_s
    assert outcome.metrics.errors == {kind: 6}
    assert outcome.metrics.scalars["error_share"] == 1
    assert outcome.metrics.scalars["throughput"] == 0
    assert "ttft" not in outcome.metrics.samples


def test_a_silent_server_is_given_up_after_the_timeout():
    with running_stub("--fail", "silent") as stub:
        ran = run(stub.url, schedule(3), concurrency=3, timeout_s=0.3)
    assert [record.error.kind for record in ran.records] == ["timeout"] * 3
    assert all(record.ended_s - record.sent_s >= 0.3 for record in ran.records)


def test_nobody_listening_is_refused():
    ran = run(f"http://127.0.0.1:{free_port()}", schedule(3), concurrency=2)
    assert [record.error.kind for record in ran.records] == ["refused"] * 3


def test_nobody_listening_is_said_before_the_load():
    port = free_port()
    with pytest.raises(PeerError, match=f"127.0.0.1:{port}: need a server that answers"):
        execute(plan_of(f"http://127.0.0.1:{port}"))


def plan_of(url):
    class At:
        pass

    at = At()
    at.url = url
    return plan(at, schedule(1))


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://x", "http://", "http://h:99999"])
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(ConfigError, match="URL: need one as http://"):
        execute(plan_of(url))


@asynccontextmanager
async def closing_server(answers):
    """Says one thing to each request, and closes the connection after an empty one, or one that
    says "close". Its port."""
    handlers = set()

    async def serve(reader, writer):
        handlers.add(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                answer = answers.pop(0)
                writer.write(answer)
                await writer.drain()
                if b"close" in answer or not answer:
                    break
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await asyncio.gather(*handlers)


def sse(*events, head=b""):
    body = b"".join(b"data: " + event + b"\n\n" for event in events)
    return b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)


WHOLE = [
    b'{"choices": [{"text": "a", "finish_reason": null}]}',
    b'{"choices": [{"text": "b", "finish_reason": "length"}]}',
    b'{"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 2}}',
    b"[DONE]",
]


def run_against(answers, count=2):
    async def both():
        async with closing_server(answers) as port:
            url = parse_url(f"http://127.0.0.1:{port}")
            endpoint = Endpoint(url=url, server="llamacpp", model="m")
            client = Client(endpoint, timeout_s=20)
            target = Target(client, endpoint, TokenPrompts(list(range(9)), seed=0))
            load = LoadPlan(url=url.geturl(), schedule=schedule(count, output_tokens=2))
            ran = await run_load(target, load)
            await client.close()
            return ran

    return asyncio.run(both())


def test_a_kept_connection_that_the_server_gave_up_is_no_error():
    # The second request goes out on a connection that is closed without a word.
    ran = run_against([sse(*WHOLE), b"", sse(*WHOLE)])
    assert [record.error for record in ran.records] == [None, None]


def test_a_new_connection_closed_without_a_word_is_an_error():
    ran = run_against([b""], count=1)
    assert [record.error.kind for record in ran.records] == ["stream"]


def test_what_is_no_http_is_an_error():
    ran = run_against([b"SSH-2.0-x close\r\n\r\n"], count=1)
    assert [record.error.kind for record in ran.records] == ["stream"]


def test_a_whole_answer_instead_of_a_stream_is_an_error():
    ran = run_against([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"], count=1)
    assert [record.error.kind for record in ran.records] == ["stream"]


def test_an_interrupted_load_keeps_what_is_finished():
    async def interrupted(stub):
        endpoint = Endpoint(url=parse_url(stub.url), server="llamacpp", model="m")
        client = Client(endpoint, timeout_s=20)
        target = Target(client, endpoint, TokenPrompts(list(range(9)), seed=0))
        turns = (one_turn(0, output_tokens=2), one_turn(1, output_tokens=5000))
        load = Schedule(name="x", sessions=(Session(turns=turns),), block_tokens=64)
        finished = asyncio.Event()
        task = asyncio.create_task(
            run_load(target, LoadPlan(url=stub.url, schedule=load), lambda record: finished.set())
        )
        await finished.wait()
        task.cancel()
        ran = await task
        await client.close()
        return ran

    with running_stub("--first-ms", 1, "--token-ms", 5) as stub:
        ran = asyncio.run(interrupted(stub))
    assert ran.is_partial
    assert [(record.turn, record.error) for record in ran.records] == [(0, None)]
