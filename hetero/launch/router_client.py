"""What commands ask of a router over HTTP: its status, and one completion.

Proxies are for the internet: a router is on this machine or in the same rack, so the environment's
proxy settings are not used.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
import msgspec

from hetero.errors import ConfigError, EngineError, HeteroError, PeerError

# A router answers its status in milliseconds, and one that swaps within seconds.
_STATUS_TIMEOUT_S = 10.0

Endpoint = Literal["completions", "chat/completions"]


@dataclass(kw_only=True)
class Completion:
    """An answer of one choice, as it has come in so far."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    num_prompt_tokens: int = 0
    route: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)


def get_status(url: str) -> dict[str, Any]:
    """The contract's status object.

    Raises: PeerError if no router answers there.
    """
    try:
        with httpx.Client(trust_env=False, timeout=_STATUS_TIMEOUT_S) as client:
            answer = client.get(f"{url}/status")
            answer.raise_for_status()
            status = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise PeerError(f"router {url}: need its status, have: {_reason(error)}") from None
    if not isinstance(status, dict) or not isinstance(status.get("nodes"), list):
        raise PeerError(f"router {url}: need a hetero router there, have another server")
    return status


def complete(
    url: str, endpoint: Endpoint, body: dict[str, Any], on_text: Callable[[str], None]
) -> Completion:
    """Ask for one completion and follow it as it comes; `on_text` gets each new piece.

    Raises: ConfigError if the router refuses the request, EngineError if it fails at it,
    PeerError if it can't be reached.
    """
    completion = Completion()
    body = body | {
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_tokens": True,
    }
    try:
        # Reading a long prompt may take minutes; keep-alive comments come all the while.
        with (
            httpx.Client(trust_env=False, timeout=_STATUS_TIMEOUT_S) as client,
            client.stream(
                "POST", f"{url}/v1/{endpoint}", json=body, timeout=httpx.Timeout(60.0)
            ) as answer,
        ):
            if answer.status_code != httpx.codes.OK:
                raise _refusal(answer.read(), answer.status_code)
            for event in _events(answer.iter_lines()):
                if text := _take(completion, event):
                    on_text(text)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise PeerError(f"router {url}: need an answer, have: {_reason(error)}") from None
    if completion.finish_reason is None:
        raise PeerError(f"router {url}: need a finished answer, have its stream end in the middle")
    return completion


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        value = line.removeprefix("data: ")
        if value != line and value != "[DONE]":
            yield msgspec.json.decode(value, type=dict[str, Any])


def _take(completion: Completion, event: dict[str, Any]) -> str:
    """Add an event to the completion; its new text."""
    if "error" in event:
        raise EngineError(event["error"]["message"])
    new = ""
    for choice in event["choices"]:
        new += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
        completion.tokens += choice.get("tokens") or ()
        completion.finish_reason = choice["finish_reason"] or completion.finish_reason
    completion.text += new
    completion.route = event.get("route", completion.route)
    completion.timings = event.get("timings", completion.timings)
    if event.get("usage"):
        completion.num_prompt_tokens = event["usage"]["prompt_tokens"]
    return new


def _refusal(raw: bytes, status: int) -> HeteroError:
    """The router's own words: its errors are in OpenAI's form."""
    try:
        message = str(msgspec.json.decode(raw)["error"]["message"])
    except (msgspec.DecodeError, TypeError, KeyError):
        message = f"router: need an answer, have HTTP status {status}"
    return ConfigError(message) if status < 500 else EngineError(message)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
