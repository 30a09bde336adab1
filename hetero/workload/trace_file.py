"""Files of recorded requests -> times, lengths and blocks, in the order of the file.

Mooncake's JSON lines; Azure's CSV of 2023 and 2024, with times to the 100 ns or with an offset from
UTC; BurstGPT's CSV, with or without sessions. Which one it is, the first line says.
"""

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from hetero.errors import ConfigError
from hetero.workload.mooncake import parsed_line

_AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_BURSTGPT = ("Timestamp", "Request tokens", "Response tokens")

_SHOWN = 60  # characters of a line that was not understood


class TracedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """at_s: seconds since any time. blocks: None if the trace does not say what prompts share."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] | None = None


def traced_requests(path: Path) -> Iterator[TracedRequest | None]:
    """None stands for a request that failed when it was recorded.

    Raises: ConfigError with the file and the line.
    """
    before_s = -math.inf
    parse: Callable[[str], TracedRequest | None] | None = None
    number = 0
    for number, text in _lines(path):
        if not text.strip():
            continue
        try:
            if parse is None:
                parse = _parser(text)
                if not text.startswith("{"):
                    continue
            request = parse(text)
            if request is not None:
                _check(request, before_s)
                before_s = request.at_s
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from None
        yield request
    if before_s == -math.inf:
        have = "the end of the file" if number else "an empty file"
        raise ConfigError(f"{path}, line {number + 1}: need a request, have {have}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                encoding = "utf-8-sig" if number == 1 else "utf-8"
                try:
                    yield number, line.decode(encoding)
                except UnicodeDecodeError:
                    raise ConfigError(f"{path}, line {number}: need text, have bytes") from None
    except OSError as error:
        raise ConfigError(f"{path}: need a trace, have: {error.strerror}") from None


def _parser(first: str) -> Callable[[str], TracedRequest | None]:
    if first.startswith("{"):
        return _mooncake_request
    names = [name.strip() for name in first.split(",")]
    if set(_AZURE) <= set(names):
        return lambda text: _azure_request(_fields(text, names))
    if set(_BURSTGPT) <= set(names):
        return lambda text: _burstgpt_request(_fields(text, names))
    raise ValueError(
        "need a Mooncake trace (JSON lines) or a header with "
        f"{', '.join(_AZURE)} (Azure) or {', '.join(_BURSTGPT)} (BurstGPT), "
        f"have {first.strip()[:_SHOWN]!r}"
    )


def _fields(text: str, names: list[str]) -> dict[str, str]:
    parts = text.strip().split(",")
    if len(parts) != len(names):
        raise ValueError(f"need {len(names)} fields, have {len(parts)}")
    return dict(zip(names, parts, strict=True))


def _mooncake_request(text: str) -> TracedRequest:
    line = parsed_line(text)
    return TracedRequest(
        at_s=line.timestamp / 1000,
        prompt_tokens=line.input_length,
        output_tokens=line.output_length,
        blocks=line.hash_ids,
    )


def _azure_request(fields: dict[str, str]) -> TracedRequest:
    written = fields["TIMESTAMP"]
    try:
        time = datetime.fromisoformat(written)
    except ValueError:
        raise ValueError(
            f"need a date and time as 2023-11-16 18:17:03.9799600, have {written[:_SHOWN]!r}"
        ) from None
    # Either is in UTC; without an offset, this machine's time zone must not decide.
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    return TracedRequest(
        at_s=time.timestamp(),
        prompt_tokens=_tokens(fields, "ContextTokens"),
        output_tokens=_tokens(fields, "GeneratedTokens"),
    )


def _burstgpt_request(fields: dict[str, str]) -> TracedRequest | None:
    written = fields["Timestamp"]
    try:
        at_s = float(written)
    except ValueError:
        raise ValueError(f"need a time in seconds, have {written[:_SHOWN]!r}") from None
    output_tokens = _tokens(fields, "Response tokens")
    prompt_tokens = _tokens(fields, "Request tokens")
    if output_tokens == 0:
        return None
    return TracedRequest(at_s=at_s, prompt_tokens=prompt_tokens, output_tokens=output_tokens)


def _tokens(fields: dict[str, str], name: str) -> int:
    try:
        return int(fields[name])
    except ValueError:
        raise ValueError(f"{name}: need a whole number, have {fields[name][:_SHOWN]!r}") from None


def _check(request: TracedRequest, before_s: float) -> None:
    if request.prompt_tokens < 1 or request.output_tokens < 1:
        raise ValueError(
            "need prompt and output of one token or more, "
            f"have {request.prompt_tokens} and {request.output_tokens}"
        )
    if not math.isfinite(request.at_s):
        raise ValueError(f"need a time, have {request.at_s}")
    if request.at_s < before_s:
        raise ValueError(
            f"need times that never go back, have {before_s - request.at_s:g} s before the line "
            "above; sort the file by time"
        )
