"""Messages to prompt text by the model's own chat template, as transformers renders it.

A template is a program from the model file: it runs in jinja2's sandbox, and its output and loops
are bounded. Tokenizing the text is the tokenizer's part; finding the template is the caller's
(`tokenizer.chat_template` in a GGUF's metadata).
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hetero.errors import ConfigError

# A million tokens are some 4 MiB of text.
MAX_PROMPT_CHARS = 16 * 2**20
# Over all `range` loops of one rendering; templates loop over messages, not over numbers.
MAX_RANGE_STEPS = 100_000


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos: str,
    eos: str,
    add_generation_prompt: bool = True,
    **extras: Any,
) -> str:
    """The prompt for `messages`; `extras` are further template variables ("enable_thinking").

    A message's content is text, or a list of OpenAI text parts, which are joined by newlines.
    Raises: ConfigError with the template's own words when it refuses the messages.
    """
    variables = {
        "tools": None,
        "documents": None,
        **extras,
        "messages": [_plain_message(index, message) for index, message in enumerate(messages)],
        "bos_token": bos,
        "eos_token": eos,
        "add_generation_prompt": add_generation_prompt,
        "range": _BoundedRange(),
    }
    pieces = []
    num_chars = 0
    try:
        for piece in _compile(template).generate(variables):
            num_chars += len(piece)
            if num_chars > MAX_PROMPT_CHARS:
                break
            pieces.append(piece)
    # The template is foreign code: whatever it raises is its way to fail, recursion included.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ConfigError(f"chat template: {reason}") from error
    if num_chars > MAX_PROMPT_CHARS:
        raise ConfigError(f"chat template: it renders more than {MAX_PROMPT_CHARS} characters")
    return "".join(pieces)


def _plain_message(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with its content as one text."""
    if not isinstance(message.get("role"), str):
        raise ConfigError(f"messages[{index}]: need a role, have {message.get('role')!r}")
    content = message.get("content")
    if content is None:
        content = ""
    elif isinstance(content, list | tuple):
        content = "\n".join(_text_parts(index, content))
    elif not isinstance(content, str):
        raise ConfigError(
            f"messages[{index}]: content: need text or a list of text parts, "
            f"have {type(content).__name__}"
        )
    return {**message, "content": content}


def _text_parts(index: int, parts: Iterable[object]) -> Iterator[str]:
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if not isinstance(part, Mapping) or kind != "text":
            raise ConfigError(
                f"messages[{index}]: content part of type {kind!r} is not served, need text"
            )
        if not isinstance(part.get("text"), str):
            raise ConfigError(f"messages[{index}]: text part without text")
        yield part["text"]


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, less the two operators that make gigabytes out of a few characters."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        sizes = [
            len(side) if isinstance(side, str | list | tuple) else side for side in (left, right)
        ]
        if operator == "**" or sizes[0] * sizes[1] > MAX_PROMPT_CHARS:
            raise jinja2.TemplateError(f"it computes something huge with {operator}")
        return left * right


class _BoundedRange:
    """`range` for one rendering. The sandbox bounds each loop, but not loops within loops."""

    def __init__(self) -> None:
        self._steps_left = MAX_RANGE_STEPS

    def __call__(self, *bounds: int) -> range:
        steps = range(*bounds)
        self._steps_left -= len(steps)
        if self._steps_left < 0:
            raise jinja2.TemplateError(f"it loops over more than {MAX_RANGE_STEPS} numbers")
        return steps


class _GenerationBlock(Extension):
    """`{% generation %}` marks what a trainer should learn from; a prompt is the block's body."""

    tags = {"generation"}  # noqa: RUF012 - the name and type are jinja2's

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> Any:
        return caller()


# Compiling takes milliseconds, and a server has one template. A few, for a process that loads
# several models one after the other.
@lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own escapes HTML characters.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
