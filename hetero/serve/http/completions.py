"""Answers in OpenAI's shapes: chat and text completions, whole and in chunks."""

from dataclasses import asdict
from typing import Any, Protocol

from hetero.messages import TokenLogprob
from hetero.serve.http.answer import Answer, Delta, Entry, FinishReason
from hetero.serve.http.tokens import Pieces
from hetero.serve.service import Summary

Json = dict[str, Any]


class Shape(Protocol):
    """What differs between the two endpoints."""

    id_prefix: str
    whole_object: str
    chunk_object: str

    def first_chunk(self, choice: int) -> Json | None:
        """A choice's chunk before its first text."""

    def chunk(self, delta: Delta) -> Json: ...

    def whole(self, choice: int, text: str, entries: list[Entry], reason: FinishReason) -> Json: ...


class ChatShape:
    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, pieces: Pieces, *, logprobs: bool) -> None:
        self._pieces = pieces
        self._logprobs = logprobs

    def first_chunk(self, choice: int) -> Json | None:
        return _choice(choice, None, {"delta": {"role": "assistant", "content": ""}}, None)

    def chunk(self, delta: Delta) -> Json:
        content = {"content": delta.text} if delta.text or delta.finish_reason is None else {}
        logprobs = self._entries(delta.entries) if delta.entries else None
        return _choice(delta.choice, logprobs, {"delta": content}, delta.finish_reason)

    def whole(self, choice: int, text: str, entries: list[Entry], reason: FinishReason) -> Json:
        message = {"role": "assistant", "content": text, "refusal": None}
        logprobs = self._entries(entries) if self._logprobs else None
        return _choice(choice, logprobs, {"message": message}, reason)

    def _entries(self, entries: list[Entry] | tuple[Entry, ...]) -> Json:
        content = [
            self._token(entry.logprob.token, entry.logprob.logprob)
            | {"top_logprobs": [self._token(token, value) for token, value in entry.logprob.top]}
            for entry in entries
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> Json:
        piece = self._pieces[token]
        # OpenAI's null: a control token stands for no bytes.
        raw = list(piece) if piece else None
        return {"token": self._pieces.spelling(token), "logprob": logprob, "bytes": raw}


class TextShape:
    id_prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, pieces: Pieces, *, logprobs: bool) -> None:
        self._pieces = pieces
        self._logprobs = logprobs

    def first_chunk(self, choice: int) -> Json | None:
        return None

    def chunk(self, delta: Delta) -> Json:
        logprobs = self._entries(delta.entries) if delta.entries else None
        return _choice(delta.choice, logprobs, {"text": delta.text}, delta.finish_reason)

    def whole(self, choice: int, text: str, entries: list[Entry], reason: FinishReason) -> Json:
        logprobs = self._entries(entries) if self._logprobs else None
        return _choice(choice, logprobs, {"text": text}, reason)

    def _entries(self, entries: list[Entry] | tuple[Entry, ...]) -> Json:
        return {
            "tokens": [self._pieces.spelling(entry.logprob.token) for entry in entries],
            "token_logprobs": [entry.logprob.logprob for entry in entries],
            "top_logprobs": [self._top(entry.logprob) for entry in entries],
            "text_offset": [entry.offset for entry in entries],
        }

    def _top(self, logprob: TokenLogprob) -> dict[str, float]:
        """With the token itself, as OpenAI has it: up to one more than was asked for."""
        pairs = {**dict(logprob.top), logprob.token: logprob.logprob}
        return {self._pieces.spelling(token): value for token, value in pairs.items()}


def usage_of(num_prompt_tokens: int, answer: Answer) -> Json:
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": answer.num_tokens,
        "total_tokens": num_prompt_tokens + answer.num_tokens,
    }


def route_and_timings(summary: Summary | None, tokenize_s: float) -> Json:
    """hetero's own part of an answer. Without a summary the router said nothing of the route."""
    if summary is None:
        return {"timings": {"tokenize_s": tokenize_s}}
    numbers = {"kv_bytes": summary.kv_bytes, "num_chunks": summary.num_chunks}
    names = {
        name: getattr(summary, name)
        for name in ("prefill_engine", "emulated", "attention", "kv_k", "kv_v")
    }
    timings = asdict(summary.timings) | {"tokenize_s": tokenize_s} | numbers | names
    return {"route": _without_null(asdict(summary.route)), "timings": _without_null(timings)}


def _choice(choice: int, logprobs: Json | None, content: Json, reason: str | None) -> Json:
    return {"index": choice, **content, "logprobs": logprobs, "finish_reason": reason}


def _without_null(fields: Json) -> Json:
    return {name: value for name, value in fields.items() if value is not None}
