"""The HTTP front on a real socket, driven by the official client, over a scripted router."""

import dataclasses
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from scripted_service import SUMMARY, ScriptedService, Silence, length, stop, tokens
from tiny_models import write_tiny_model

from hetero.decode.grammar import GrammarChecker
from hetero.errors import EngineError, PeerError, PlanError
from hetero.llama.model import Model, Vocab
from hetero.model.synth import BOS, CHAT_TEMPLATE, EOS
from hetero.serve.http.app import MAX_BODY_BYTES, make_app
from hetero.serve.service import ServedModel

KEEP_ALIVE_S = 0.05
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", num_layers=1)


@pytest.fixture(scope="module")
def vocab(model_path: Path) -> Iterator[Vocab]:
    with Model(model_path, vocab_only=True) as model:
        yield model.vocab


@pytest.fixture(scope="module")
def served(vocab: Vocab) -> ServedModel:
    return ServedModel(
        name="tiny", vocab=vocab, chat_template=CHAT_TEMPLATE, context_tokens=256, created=1234
    )


@pytest.fixture(scope="module")
def server(served: ServedModel, model_path: Path) -> Iterator[tuple[ScriptedService, str]]:
    service = ScriptedService(served)
    app = make_app(service, GrammarChecker(model_path), keep_alive_s=KEEP_ALIVE_S)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", lifespan="off")
    web = uvicorn.Server(config)
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]})
    thread.start()
    yield service, f"http://127.0.0.1:{listener.getsockname()[1]}"
    web.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture
def service(server: tuple[ScriptedService, str], served: ServedModel) -> ScriptedService:
    service = server[0]
    service.model = served
    service.script = []
    service.requests = []
    service.started.clear()
    service.closed.clear()
    return service


@pytest.fixture
def http(server: tuple[ScriptedService, str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server[1], timeout=20) as client:
        yield client


@pytest.fixture
def client(server: tuple[ScriptedService, str]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server[1]}/v1", api_key="none", max_retries=0) as client:
        yield client


def ids(vocab: Vocab, text: str) -> list[int]:
    return vocab.tokenize(text, add_special=False, parse_special=False)


def events(response: httpx.Response) -> list[Any]:
    """The data of a finished stream's events; comments are left out."""
    return [
        json.loads(line[6:]) if line[6:] != "[DONE]" else "[DONE]"
        for line in response.text.split("\n\n")
        if line.startswith("data: ")
    ]


# Answers.


def test_chat_answer_has_text_usage_route_and_timings(
    service: ScriptedService, client: openai.OpenAI, vocab: Vocab
) -> None:
    service.script = [*tokens(ids(vocab, "héllo")), stop(), SUMMARY]
    answer = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=20)
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == "héllo"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is None
    (request,) = service.requests
    assert answer.id == request.request_id
    assert answer.usage.prompt_tokens == len(request.prompt)
    assert answer.usage.completion_tokens == len("héllo".encode())
    assert answer.usage.total_tokens == len(request.prompt) + len("héllo".encode())
    assert answer.route == {
        "kind": "local",
        "decode_node": "d0",
        "reason": "the prompt is short",
    }
    timings = answer.timings
    assert timings.pop("tokenize_s") > 0
    assert timings == {
        **{f"{stage}_s": 0.0 for stage in ("pack", "wire", "restore", "exposed", "tpot")},
        "last_group_s": 0.0,
        "prefill_s": 0.5,
        "ttft_s": 0.6,
        "kv_bytes": 4096,
        "num_chunks": 2,
        "kv_k": "q8_0",
    }


def test_prompt_is_the_rendered_template_with_one_bos(
    service: ScriptedService, client: openai.OpenAI, vocab: Vocab
) -> None:
    service.script = [stop(), SUMMARY]
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    client.chat.completions.create(model="tiny", messages=messages)
    text = (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    (request,) = service.requests
    assert list(request.prompt) == vocab.tokenize(text, add_special=True, parse_special=True)
    assert request.prompt.count(BOS) == 1


def test_template_that_writes_bos_gets_no_second_one(
    service: ScriptedService, client: openai.OpenAI, served: ServedModel
) -> None:
    service.model = dataclasses.replace(
        served, chat_template="{{ bos_token }}{{ messages[0].content }}"
    )
    service.script = [stop(), SUMMARY]
    client.chat.completions.create(model="tiny", messages=HELLO)
    assert service.requests[0].prompt.count(BOS) == 1


def test_chat_stream_begins_with_the_role_and_ends_with_the_route(
    service: ScriptedService, http: httpx.Client, vocab: Vocab
) -> None:
    service.script = [*tokens(ids(vocab, "né")), length(), SUMMARY]
    response = http.post("/v1/chat/completions", json={"messages": HELLO, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(response)
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"] for chunk in chunks[1:]] == [
        {"content": "n"},
        {"content": "é"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 3 + ["length"]
    assert chunks[-1]["route"]["decode_node"] == "d0"
    assert chunks[-1]["timings"]["kv_bytes"] == 4096
    assert all("usage" not in chunk for chunk in chunks)
    assert {chunk["id"] for chunk in chunks} == {service.requests[0].request_id}


def test_stream_usage_comes_in_a_chunk_of_its_own(
    service: ScriptedService, client: openai.OpenAI, vocab: Vocab
) -> None:
    service.script = [*tokens(ids(vocab, "abc")), stop(), SUMMARY]
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "abc"
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage.completion_tokens == 3
    assert last.route["kind"] == "local"
    assert last.timings["prefill_s"] == 0.5


def test_text_completion_streams_and_answers_whole(
    service: ScriptedService, client: openai.OpenAI, vocab: Vocab
) -> None:
    service.script = [*tokens(ids(vocab, "abc")), stop(), SUMMARY]
    whole = client.completions.create(model="tiny", prompt="say")
    assert (whole.object, whole.choices[0].text) == ("text_completion", "abc")
    chunks = list(client.completions.create(model="tiny", prompt="say", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "abc"
    assert chunks[-1].choices[0].finish_reason == "stop"
    prompts = {request.prompt for request in service.requests}
    assert prompts == {tuple(vocab.tokenize("say", add_special=True, parse_special=True))}


@pytest.mark.parametrize("prompt", [[7, 8, 9], [[7, 8, 9]]])
def test_prompt_may_be_tokens(
    service: ScriptedService, client: openai.OpenAI, prompt: list[Any]
) -> None:
    service.script = [stop(), SUMMARY]
    client.completions.create(model="tiny", prompt=prompt)
    assert service.requests[0].prompt == (7, 8, 9)


@pytest.mark.parametrize("stream", [False, True])
def test_choices_are_kept_apart(
    service: ScriptedService, client: openai.OpenAI, vocab: Vocab, stream: bool
) -> None:
    one, two = (tokens(ids(vocab, text), choice=c) for c, text in enumerate(("abé", "xyz")))
    woven = [token for pair in zip(one, two, strict=False) for token in pair] + one[len(two) :]
    service.script = [*woven, length(1), stop(0), SUMMARY]
    answer = client.chat.completions.create(model="tiny", messages=HELLO, n=2, stream=stream)
    texts, reasons = ["", ""], ["", ""]
    if stream:
        for chunk in answer:
            choice = chunk.choices[0]
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    else:
        texts = [choice.message.content for choice in answer.choices]
        reasons = [choice.finish_reason for choice in answer.choices]
        assert answer.usage.completion_tokens == len(one) + len(two)
    assert texts == ["abé", "xyz"]
    assert reasons == ["stop", "length"]
    assert service.requests[0].num_choices == 2


@pytest.mark.parametrize("stream", [False, True])
def test_stop_string_ends_the_answer_and_the_generation(
    service: ScriptedService, client: openai.OpenAI, vocab: Vocab, stream: bool
) -> None:
    service.script = [SUMMARY, *tokens(ids(vocab, "one <en, <end> two")), Silence()]
    answer = client.completions.create(
        model="tiny",
        prompt="say",
        stop=["<end>", "never"],
        stream=stream,
        stream_options={"include_usage": True} if stream else openai.omit,
    )
    chunks = list(answer) if stream else [answer]
    assert "".join(c.text for chunk in chunks for c in chunk.choices) == "one <en, "
    assert [c.finish_reason for chunk in chunks for c in chunk.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens == len("one <en, <end>")
    # The router's word from before the end is all there is.
    assert chunks[-1].route["decode_node"] == "d0"
    assert service.closed.wait(10)


def test_one_choice_stopped_by_a_string_leaves_the_other_running(
    service: ScriptedService, client: openai.OpenAI, vocab: Vocab
) -> None:
    service.script = [
        *tokens(ids(vocab, "a#b"), choice=0),
        *tokens(ids(vocab, "cde"), choice=1),
        length(0),
        stop(1),
        SUMMARY,
    ]
    answer = client.completions.create(model="tiny", prompt="say", n=2, stop="#")
    assert [(c.text, c.finish_reason) for c in answer.choices] == [("a", "stop"), ("cde", "stop")]
    assert answer.usage.completion_tokens == 2 + 3
    assert answer.route["decode_node"] == "d0"


# Log-probabilities.


def test_chat_logprobs_are_in_openai_form(
    service: ScriptedService, client: openai.OpenAI, vocab: Vocab
) -> None:
    service.script = [*tokens(ids(vocab, "aé"), num_top=2), stop(), SUMMARY]
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    assert [(entry.token, entry.logprob, entry.bytes) for entry in content] == [
        ("a", -1.0, [97]),
        ("bytes:\\xc3", -2.0, [0xC3]),
        ("bytes:\\xa9", -3.0, [0xA9]),
    ]
    first = vocab.piece(10).decode()
    assert (content[0].top_logprobs[0].token, content[0].top_logprobs[0].logprob) == (first, -2.0)
    assert len(content[0].top_logprobs) == 2
    assert service.requests[0].sampling.top_logprobs == 2


def test_streamed_logprobs_come_with_their_text(
    service: ScriptedService, client: openai.OpenAI, vocab: Vocab
) -> None:
    service.script = [*tokens(ids(vocab, "aéb"), num_top=0), stop(), SUMMARY]
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, logprobs=True, stream=True
    )
    seen = []
    for chunk in stream:
        choice = chunk.choices[0]
        if choice.logprobs:
            raw = bytes(byte for entry in choice.logprobs.content for byte in entry.bytes)
            seen.append((choice.delta.content, raw.decode()))
    assert seen == [("a", "a"), ("é", "é"), ("b", "b")]


def test_text_logprobs_leave_out_the_stop_string(
    service: ScriptedService, client: openai.OpenAI, vocab: Vocab
) -> None:
    service.script = [*tokens(ids(vocab, "ab##c"), num_top=1), Silence()]
    answer = client.completions.create(model="tiny", prompt="say", logprobs=1, stop="##")
    logprobs = answer.choices[0].logprobs
    assert logprobs.tokens == ["a", "b"]
    assert logprobs.token_logprobs == [-1.0, -2.0]
    assert logprobs.text_offset == [0, 1]
    assert logprobs.top_logprobs[0] == {vocab.piece(10).decode(): -2.0, "a": -1.0}


def test_control_token_is_spelled_but_is_no_text(
    service: ScriptedService, client: openai.OpenAI, vocab: Vocab
) -> None:
    service.script = [*tokens([*ids(vocab, "a"), EOS], num_top=0), length(), SUMMARY]
    answer = client.chat.completions.create(model="tiny", messages=HELLO, logprobs=True)
    assert answer.choices[0].message.content == "a"
    last = answer.choices[0].logprobs.content[-1]
    assert (last.token, last.bytes) == ("<|im_end|>", None)


# What is asked of the router.


def test_options_reach_the_router(service: ScriptedService, client: openai.OpenAI) -> None:
    service.script = [stop(), SUMMARY]
    extra = {"top_k": -1, "min_p": 0.1, "repeat_penalty": 1.1, "ignore_eos": True, "route": "split"}
    client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        temperature=0.5,
        top_p=0.9,
        seed=-1,
        max_completion_tokens=7,
        logit_bias={"5": -100},
        presence_penalty=0.1,
        frequency_penalty=0.2,
        extra_body=extra,
    )
    (request,) = service.requests
    sampling = request.sampling
    assert request.max_tokens == 7
    assert request.route == "split"
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.5, 0.9, 2**64 - 1)
    assert (sampling.top_k, sampling.min_p, sampling.repeat_penalty) == (0, 0.1, 1.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.1, 0.2)
    assert sampling.logit_bias == ((5, -100.0),)
    assert sampling.ignore_eos
    assert sampling.top_logprobs is None


def test_absent_options_take_openai_defaults_and_a_fresh_seed(
    service: ScriptedService, client: openai.OpenAI, served: ServedModel
) -> None:
    service.script = [stop(), SUMMARY]
    for _ in range(2):
        client.chat.completions.create(model="tiny", messages=HELLO)
    one, two = service.requests
    assert (one.sampling.temperature, one.sampling.top_p, one.route) == (1.0, 1.0, "auto")
    assert one.sampling.seed != two.sampling.seed
    assert one.max_tokens == served.context_tokens - len(one.prompt)


def test_schema_and_grammar_reach_the_router_as_gbnf(
    service: ScriptedService, client: openai.OpenAI
) -> None:
    service.script = [stop(), SUMMARY]
    schema = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}
    for wish in (
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"schema": schema}},
    ):
        client.chat.completions.create(model="tiny", messages=HELLO, response_format=wish)
    client.completions.create(model="tiny", prompt="a", extra_body={"grammar": 'root ::= "x"'})
    anything, one_field, own = (request.sampling.grammar for request in service.requests)
    assert "root ::= object" in anything
    assert '"\\"a\\""' in one_field
    assert own == 'root ::= "x"'


# Failures.


def failure(response: httpx.Response) -> tuple[int, dict[str, Any]]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return response.status_code, body["error"]


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"model": "gpt-4"}, 404, "model: need 'tiny', which is served here, have 'gpt-4'"),
        ({"prompt": "x" * 300}, 400, "prompt: need a context of 302 tokens"),
        ({"max_tokens": 255}, 400, "257 tokens (2 in the prompt, 255 for the answer), have 256"),
        ({"prompt": []}, 400, "prompt: need at least one token, have none"),
        ({"prompt": ["a", "b"]}, 400, "prompt: need one prompt a request, have 2"),
        ({"prompt": [1, 99999]}, 400, "prompt: need tokens from 0 to 511, have 99999"),
        ({"logit_bias": {"99999": 1}}, 400, "logit_bias: need tokens from 0 to 511"),
        ({"logit_bias": {"x": 1}}, 400, "logit_bias: need tokens from 0 to 511, have 'x'"),
        ({"grammar": "root ::= nope"}, 400, "grammar: need valid GBNF, have: Undefined rule"),
        (
            {"grammar": 'root ::= "a"', "response_format": {"type": "json_object"}},
            400,
            "grammar: need one of grammar and response_format, have both",
        ),
        ({"tools": [1]}, 400, "tools: this server does not serve it"),
        ({"max_token": 1}, 400, "did you mean max_tokens?"),
        ({"max_tokens": "1"}, 400, "max_tokens: need int | null, have str"),
    ],
)
def test_bad_request_gets_an_openai_error(
    service: ScriptedService, http: httpx.Client, fields: dict[str, Any], status: int, message: str
) -> None:
    response = http.post("/v1/completions", json={"prompt": "a"} | fields)
    have, error = failure(response)
    assert have == status
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] in fields or error["param"] is None
    assert service.requests == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_logprobs": 2}, "top_logprobs: need logprobs true beside it"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "have both"),
        ({"chat_template_kwargs": {"messages": []}}, "names of the template's own, have messages"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"minimum": 3, "type": "integer"}},
                }
            },
            "have 'minimum'",
        ),
    ],
)
def test_bad_chat_request_gets_an_openai_error(
    service: ScriptedService, http: httpx.Client, fields: dict[str, Any], message: str
) -> None:
    status, error = failure(http.post("/v1/chat/completions", json={"messages": HELLO} | fields))
    assert status == 400
    assert message in error["message"]
    assert service.requests == []


def test_long_prompt_has_the_code_clients_look_for(
    service: ScriptedService, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="x" * 300)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "prompt"


def test_unknown_model_is_the_clients_not_found(
    service: ScriptedService, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="other", prompt="x")
    assert caught.value.code == "model_not_found"


def test_model_without_template_says_where_to_go(
    service: ScriptedService, http: httpx.Client, served: ServedModel
) -> None:
    service.model = dataclasses.replace(served, chat_template=None)
    status, error = failure(http.post("/v1/chat/completions", json={"messages": HELLO}))
    assert status == 400
    assert "use /v1/completions" in error["message"]


def test_template_that_refuses_the_messages_is_a_bad_request(
    service: ScriptedService, http: httpx.Client, served: ServedModel
) -> None:
    service.model = dataclasses.replace(
        served, chat_template="{{ raise_exception('roles must alternate') }}"
    )
    status, error = failure(http.post("/v1/chat/completions", json={"messages": HELLO}))
    assert status == 400
    assert "roles must alternate" in error["message"]


def test_no_decode_node_is_unavailable_for_now(
    service: ScriptedService, http: httpx.Client, served: ServedModel
) -> None:
    service.model = dataclasses.replace(served, context_tokens=0)
    for response in (http.post("/v1/completions", json={"prompt": "a"}), http.get("/health")):
        status, error = failure(response)
        assert status == 503
        assert int(response.headers["retry-after"]) > 0
        assert error["type"] == "server_error"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (PlanError("need a free slot, have none"), 503, "need a free slot, have none"),
        (PeerError('node "d0": lost'), 502, 'node "d0": lost'),
        (EngineError("decode failed"), 500, "decode failed"),
        (ValueError("secret detail"), 500, "internal error; the router's log has the details"),
    ],
)
def test_failure_before_the_first_token_has_a_status(
    service: ScriptedService,
    http: httpx.Client,
    error: Exception,
    status: int,
    message: str,
    stream: bool,
) -> None:
    service.script = [error]
    response = http.post("/v1/completions", json={"prompt": "a", "stream": stream})
    have, body = failure(response)
    assert (have, body["message"]) == (status, message)
    assert ("retry-after" in response.headers) == (status == 503)


def test_failure_within_a_stream_is_its_last_event(
    service: ScriptedService, http: httpx.Client, vocab: Vocab
) -> None:
    service.script = [*tokens(ids(vocab, "ab")), PeerError('node "d0": lost')]
    response = http.post("/v1/completions", json={"prompt": "a", "stream": True})
    assert response.status_code == 200
    *chunks, last = events(response)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", "b"]
    assert last["error"]["message"] == 'node "d0": lost'


def test_failure_within_a_stream_reaches_the_official_client(
    service: ScriptedService, client: openai.OpenAI, vocab: Vocab
) -> None:
    service.script = [*tokens(ids(vocab, "ab")), PeerError('node "d0": lost')]
    stream = client.completions.create(model="tiny", prompt="a", stream=True)
    with pytest.raises(openai.APIError, match=r'node "d0": lost'):
        list(stream)


@pytest.mark.parametrize("stream", [False, True])
def test_router_that_stops_without_a_word_is_an_error(
    service: ScriptedService, http: httpx.Client, vocab: Vocab, stream: bool
) -> None:
    service.script = tokens(ids(vocab, "ab"))
    response = http.post("/v1/completions", json={"prompt": "a", "stream": stream})
    error = events(response)[-1] if stream else response.json()
    assert "need 1 finished choices, have fewer" in error["error"]["message"]


def test_unknown_path_wrong_method_and_bad_json(http: httpx.Client) -> None:
    assert failure(http.get("/v1/nothing"))[0] == 404
    status, error = failure(http.get("/v1/chat/completions"))
    assert status == 405
    assert "GET /v1/chat/completions" in error["message"]
    status, error = failure(http.post("/v1/chat/completions", content=b"{"))
    assert status == 400
    assert "valid JSON" in error["message"]


def test_huge_body_is_refused(http: httpx.Client) -> None:
    response = http.post("/v1/completions", content=b" " * (MAX_BODY_BYTES + 1))
    assert failure(response)[0] == 413


# Connections.


def test_silence_is_filled_with_comments(http: httpx.Client, service: ScriptedService) -> None:
    service.script = [Silence()]
    body = {"messages": HELLO, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = (line for line in response.iter_lines() if line)
        assert [next(lines) for _ in range(3)] == [": keep-alive"] * 3
        assert not service.closed.is_set()
    assert service.closed.wait(10)


def test_official_client_ignores_comments(
    service: ScriptedService, client: openai.OpenAI, vocab: Vocab
) -> None:
    service.script = [*tokens(ids(vocab, "a")), Silence()]
    stream = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
    assert [next(stream).choices[0].delta.content for _ in range(2)] == ["", "a"]
    stream.close()
    assert service.closed.wait(10)


def test_client_that_leaves_before_its_whole_answer_cancels_it(
    service: ScriptedService, server: tuple[ScriptedService, str], vocab: Vocab
) -> None:
    service.script = [*tokens(ids(vocab, "a")), Silence()]
    body = json.dumps({"prompt": "a"})
    port = int(server[1].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            f"{body}".encode()
        )
        assert service.started.wait(10)
        assert not service.closed.is_set()
    assert service.closed.wait(10)


def test_answer_that_is_complete_closes_its_generation(
    service: ScriptedService, client: openai.OpenAI
) -> None:
    service.script = [stop(), SUMMARY]
    client.completions.create(model="tiny", prompt="a")
    assert service.closed.wait(10)


# The other endpoints, and a front end.


def test_tokenize_and_detokenize_are_inverse(http: httpx.Client, vocab: Vocab) -> None:
    text = "héllo w300"
    answer = http.post("/tokenize", json={"content": text}).json()
    assert answer == {"tokens": ids(vocab, text)}
    assert http.post("/detokenize", json=answer).json() == {"content": text}
    special = http.post("/tokenize", json={"prompt": "a", "add_special": True}).json()
    assert special == {"tokens": [BOS, *ids(vocab, "a")]}
    pieces = http.post("/tokenize", json={"content": "aé", "with_pieces": True}).json()
    assert [entry["piece"] for entry in pieces["tokens"]] == ["a", [0xC3], [0xA9]]


@pytest.mark.parametrize("body", [{}, {"content": "a", "prompt": "b"}, {"text": "a"}])
def test_tokenize_wants_one_text(http: httpx.Client, body: dict[str, Any]) -> None:
    assert failure(http.post("/tokenize", json=body))[0] == 400


def test_detokenize_refuses_tokens_that_do_not_exist(http: httpx.Client) -> None:
    assert failure(http.post("/detokenize", json={"tokens": [5, 512]}))[0] == 400


def test_metrics_status_and_health_are_the_routers(
    service: ScriptedService, http: httpx.Client
) -> None:
    metrics = http.get("/metrics")
    assert metrics.text == service.metrics()
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert http.get("/status").json() == service.status()
    assert http.get("/health").status_code == 200


def test_chat_front_end_lists_models_and_chats(
    service: ScriptedService, http: httpx.Client, vocab: Vocab
) -> None:
    """The two calls that Open WebUI makes, with the fields it sends."""
    (model,) = http.get("/v1/models").json()["data"]
    assert model == {"id": "tiny", "object": "model", "created": 1234, "owned_by": "hetero"}
    service.script = [*tokens(ids(vocab, "hi")), stop(), SUMMARY]
    body = {
        "model": model["id"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "system", "content": "x"}, *HELLO],
        "metadata": {"chat_id": "c", "message_id": "m", "session_id": "s"},
        "user": "someone@example.com",
        "max_tokens": 64,
        "temperature": 0.8,
        "stop": [],
    }
    response = http.post(
        "/v1/chat/completions", json=body, headers={"Authorization": "Bearer none"}
    )
    *chunks, last, done = events(response)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert (text, done) == ("hi", "[DONE]")
    assert last["usage"]["completion_tokens"] == 2
