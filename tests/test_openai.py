"""Request bodies: what is served, what is harmless, and what is refused by name."""

import json
from typing import Any

import pytest

from hetero.serve.http.failures import RequestError
from hetero.serve.http.openai import ChatBody, JsonSchema, TextBody, parse

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}


def chat(**fields: Any) -> ChatBody:
    return parse(json.dumps(HELLO | fields).encode(), ChatBody)


def refusal(raw: bytes, kind: type[ChatBody] | type[TextBody] = ChatBody) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(raw, kind)
    return caught.value


def chat_refusal(**fields: Any) -> RequestError:
    return refusal(json.dumps(HELLO | fields).encode())


def test_what_front_ends_send_along_is_accepted() -> None:
    body = chat(
        stream=True,
        stream_options={"include_usage": True},
        user="someone",
        metadata={"chat_id": "1"},
        store=False,
        service_tier="auto",
        safety_identifier="x",
        prompt_cache_key="y",
        parallel_tool_calls=False,
    )
    assert body.stream
    assert body.stream_options.include_usage


def test_fields_that_ask_for_nothing_are_accepted() -> None:
    body = chat(
        tools=[],
        tool_choice="none",
        functions=None,
        modalities=["text"],
        temperature=None,
        stop=None,
        max_tokens=None,
        response_format=None,
        logit_bias=None,
    )
    assert body.temperature is None
    assert body.stop_strings == ()


def test_messages_that_came_from_an_answer_are_accepted() -> None:
    answer = {
        "role": "assistant",
        "content": "hi",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "tool_calls": [],
        "function_call": None,
    }
    body = chat(messages=[*HELLO["messages"], answer, *HELLO["messages"]])
    assert [message.role for message in body.messages] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "auto"),
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("audio", {"voice": "x"}),
        ("modalities", ["text", "audio"]),
        ("prediction", {"type": "content", "content": "x"}),
        ("reasoning_effort", "low"),
        ("web_search_options", {}),
        ("verbosity", "low"),
        ("best_of", 2),
        ("suffix", "x"),
        ("echo", True),
    ],
)
def test_meaningful_field_that_is_not_served_is_named(name: str, value: object) -> None:
    error = chat_refusal(**{name: value})
    assert str(error) == f"{name}: this server does not serve it; leave it out"
    assert (error.param, error.code, error.status) == (name, "unsupported_parameter", 400)


def test_one_is_not_true() -> None:
    assert refusal(b'{"prompt": "a", "best_of": true}', TextBody).param == "best_of"


def test_unknown_field_is_named_with_a_near_match() -> None:
    error = chat_refusal(max_token=5)
    assert str(error) == "max_token: this server knows no such field; did you mean max_tokens?"
    assert (error.param, error.code) == ("max_token", "unknown_parameter")


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"max_tokens": "5"}, "max_tokens: need int | null, have str", "max_tokens"),
        ({"max_tokens": True}, "max_tokens: need int | null, have bool", "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens: need int | null, have float", "max_tokens"),
        ({"max_tokens": 0}, "max_tokens: need int >= 1", "max_tokens"),
        ({"temperature": 2.1}, "temperature: need float <= 2.0", "temperature"),
        ({"temperature": "hot"}, "temperature: need float | null, have str", "temperature"),
        ({"top_p": -0.1}, "top_p: need float >= 0.0", "top_p"),
        ({"n": 17}, "n: need int <= 16", "n"),
        ({"n": 0}, "n: need int >= 1", "n"),
        ({"stream": 1}, "stream: need bool, have int", "stream"),
        ({"stop": ["a"] * 17}, "stop: need array of length <= 16", "stop"),
        ({"stop": [1]}, "stop[0]: need str, have int", "stop[0]"),
        ({"seed": "x"}, "seed: need int | null, have str", "seed"),
        ({"top_logprobs": 21}, "top_logprobs: need int <= 20", "top_logprobs"),
        ({"logit_bias": {"5": 101}}, "logit_bias[...]: need float <= 100.0", "logit_bias[...]"),
        ({"presence_penalty": 3}, "presence_penalty: need float <= 2.0", "presence_penalty"),
        ({"route": "fast"}, "route: need auto, local or split, have 'fast'", "route"),
        ({"messages": []}, "messages: need array of length >= 1", "messages"),
        ({"messages": None}, "messages: need it, have none", "messages"),
        ({"messages": "hi"}, "messages: need array, have str", "messages"),
        (
            {"messages": [{"role": "tool", "content": ""}]},
            "messages[0].role: need system, developer, user or assistant, have 'tool'",
            "messages[0].role",
        ),
        (
            {"messages": [{"role": "user", "content": None}]},
            "messages[0].content: need it, have none",
            "messages[0].content",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type: need text (this server takes no other content), "
            "have 'image_url'",
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": "", "tool_calls": [1]}]},
            "messages[0].tool_calls: this server does not serve it; leave it out",
            "messages[0].tool_calls",
        ),
        (
            {"stream_options": {"usage": True}},
            "stream_options.usage: this server knows no such field",
            "stream_options.usage",
        ),
        (
            {"response_format": {"type": "xml"}},
            "response_format.type: need text, json_object or json_schema, have 'xml'",
            "response_format.type",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema: need it, have none",
            "response_format.json_schema.schema",
        ),
    ],
)
def test_wrong_value_is_refused_with_its_place(
    fields: dict[str, Any], message: str, param: str
) -> None:
    error = chat_refusal(**fields)
    assert str(error) == message
    assert error.param == param


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"nonsense", b'{"a": NaN}', b'{"a": "\\ud800"}', b"[" * 100_000, b"\xff"]
)
def test_malformed_json_is_refused(raw: bytes) -> None:
    assert str(refusal(raw)).startswith("body: need valid JSON, have: ")


@pytest.mark.parametrize("raw", [b"[]", b"1", b"null", b'"x"'])
def test_json_that_is_no_object_is_refused(raw: bytes) -> None:
    assert str(refusal(raw)).startswith("body: need a JSON object, have ")


def test_text_parts_and_schema_are_read() -> None:
    wish = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": {}}}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = chat(response_format=wish, messages=[{"role": "developer", "content": parts}])
    assert isinstance(body.response_format, JsonSchema)
    content = body.messages[0].content
    assert not isinstance(content, str)
    assert [part.text for part in content] == ["a", "b"]


@pytest.mark.parametrize(
    ("stop", "strings"), [("", ()), ("a", ("a",)), ([], ()), (["a", "", "b"], ("a", "b"))]
)
def test_stop_is_a_string_or_several(stop: object, strings: tuple[str, ...]) -> None:
    assert chat(stop=stop).stop_strings == strings
