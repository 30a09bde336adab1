"""Request bodies: OpenAI's fields, llama-server's extensions, and hetero's `route`.

A field is served, accepted because it changes nothing here, or refused by name: a silently
dropped option would be a lie about the answer. `parse` is strict about types and ranges.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from hetero.routing.route import Wish
from hetero.serve.http.failures import RequestError

_Body = TypeVar("_Body", bound=msgspec.Struct)

MaxTokens = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
TokenKey = Annotated[str, msgspec.Meta(max_length=10)]
Bias = Annotated[float, msgspec.Meta(ge=-100, le=100)]
Biases = Annotated[dict[TokenKey, Bias], msgspec.Meta(max_length=300)]  # as many as OpenAI takes
# Long enough for any marker; every token of every choice is matched against them.
Stop = Annotated[str, msgspec.Meta(max_length=1000)]
Stops = Annotated[list[Stop], msgspec.Meta(max_length=16)]
Tokens = list[Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]]

# Accepted and without effect: they ask for nothing that an answer could lack.
_HARMLESS = frozenset(
    ("metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "store")
) | {"safety_identifier", "service_tier", "user"}

# Meaningful and not served: refused, unless null or one of these values, which ask for nothing.
_NOT_SERVED: dict[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": (),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
_NOT_SERVED_IN_MESSAGES: dict[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}

# What to say instead of msgspec's "Invalid enum value", by the end of the field's path.
_CHOICES = {
    "role": "system, developer, user or assistant",
    "route": "auto, local or split",
    "response_format.type": "text, json_object or json_schema",
    "].type": "text (this server takes no other content)",
}


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class TextPart(_Strict, frozen=True, kw_only=True, tag_field="type", tag="text"):
    text: str


class ChatMessage(_Strict, frozen=True, kw_only=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    reasoning_content: str | None = None


class StreamOptions(_Strict, frozen=True, kw_only=True):
    include_usage: bool = False
    include_obfuscation: bool = False  # padding against eavesdroppers, which OpenAI may leave out


class AnyText(_Strict, frozen=True, kw_only=True, tag_field="type", tag="text"):
    pass


class JsonObject(_Strict, frozen=True, kw_only=True, tag_field="type", tag="json_object"):
    pass


class NamedSchema(_Strict, frozen=True, kw_only=True):
    schema: dict[str, Any]
    name: str = ""
    description: str | None = None
    strict: bool | None = None  # enforced either way


class JsonSchema(_Strict, frozen=True, kw_only=True, tag_field="type", tag="json_schema"):
    json_schema: NamedSchema


class CompletionBody(_Strict, frozen=True, kw_only=True):
    """What both endpoints take. Absent sampling fields take the defaults of `Sampling`."""

    model: str | None = None
    max_tokens: MaxTokens | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    stop: Stop | Stops = ""
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    logit_bias: Biases = {}
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    response_format: AnyText | JsonObject | JsonSchema = AnyText()
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    repeat_penalty: Annotated[float, msgspec.Meta(ge=0.01, le=10)] | None = None
    grammar: str = ""
    ignore_eos: bool = False
    return_tokens: bool = False  # ids beside the text
    route: Wish = "auto"

    @property
    def stop_strings(self) -> tuple[str, ...]:
        strings = [self.stop] if isinstance(self.stop, str) else self.stop
        return tuple(string for string in strings if string)


class ChatBody(CompletionBody, frozen=True, kw_only=True):
    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)]
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    chat_template_kwargs: dict[str, Any] = {}


class TextBody(CompletionBody, frozen=True, kw_only=True):
    prompt: str | list[int | str | Tokens]
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None


class TokenizeBody(_Strict, frozen=True, kw_only=True):
    """llama-server's /tokenize; `prompt` is vLLM's name for the same."""

    content: str | None = None
    prompt: str | None = None
    model: str | None = None
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeBody(_Strict, frozen=True, kw_only=True):
    tokens: Tokens
    model: str | None = None


def parse(raw: bytes, kind: type[_Body]) -> _Body:
    """Raises: RequestError naming the field."""
    try:
        fields = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"body: need valid JSON, have: {error}") from None
    if not isinstance(fields, dict):
        raise RequestError(f"body: need a JSON object, have {type(fields).__name__}")
    fields = _served(fields, kind, _NOT_SERVED, "")
    if isinstance(fields.get("messages"), list):
        fields["messages"] = [
            _served(message, ChatMessage, _NOT_SERVED_IN_MESSAGES, f"messages[{index}].")
            if isinstance(message, dict)
            else message
            for index, message in enumerate(fields["messages"])
        ]
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise _explained(error) from None


def _served(
    fields: Mapping[str, Any],
    kind: type[msgspec.Struct],
    not_served: Mapping[str, tuple[object, ...]],
    place: str,
) -> dict[str, Any]:
    """The fields that `kind` has. Null means absent, as front ends that send every field do."""
    known = set(kind.__struct_fields__)
    served = {}
    for name, value in fields.items():
        param = place + name
        if name in known:
            if value is not None:
                served[name] = value
        elif name in not_served:
            if value is not None and not _is_one_of(value, not_served[name]):
                raise RequestError(
                    f"{param}: this server does not serve it; leave it out",
                    param=param,
                    code="unsupported_parameter",
                )
        elif name not in _HARMLESS or place:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise RequestError(
                f"{param}: this server knows no such field{hint}",
                param=param,
                code="unknown_parameter",
            )
    return served


def _is_one_of(value: object, neutral: tuple[object, ...]) -> bool:
    """Equal and of the same type: 1 is not True."""
    return any(type(value) is type(other) and value == other for other in neutral)


def _explained(error: msgspec.ValidationError) -> RequestError:
    text, _, path = str(error).partition(" - at `$")
    param = path.rstrip("`").lstrip(".") or None
    missing = re.search(r"missing required field `(\w+)`|unknown field `(\w+)`", text)
    if missing:
        param = ".".join(filter(None, (param, missing[1] or missing[2])))
        text = "need it, have none" if missing[1] else "this server knows no such field"
    for ending, choices in _CHOICES.items():
        if param and param.endswith(ending) and text.startswith("Invalid"):
            text = f"need {choices}, have {text.partition('value ')[2]}"
    text = text.replace("Expected ", "need ").replace(", got ", ", have ").replace("`", "")
    return RequestError(f"{param or 'body'}: {text}", param=param)
