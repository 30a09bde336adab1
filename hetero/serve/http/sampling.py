"""A request body to what the nodes need: how tokens are drawn, and how many at most."""

import secrets
from typing import Any

from hetero.decode.grammar import GrammarChecker
from hetero.messages import Sampling
from hetero.serve.http.failures import RequestError
from hetero.serve.http.openai import ChatBody, CompletionBody, JsonObject, JsonSchema, TextBody
from hetero.serve.service import ServedModel

_SEED_BITS = 2**64 - 1


def sampling_of(body: CompletionBody, model: ServedModel) -> Sampling:
    """All but the grammar.

    Raises: RequestError for fields that are wrong together or for this vocabulary.
    """
    given: dict[str, Any] = {
        name: getattr(body, name)
        for name in (
            *("temperature", "top_p", "frequency_penalty", "presence_penalty"),
            *("min_p", "repeat_penalty"),
        )
        if getattr(body, name) is not None
    }
    if body.top_k is not None:
        given["top_k"] = max(body.top_k, 0)  # llama-server and vLLM turn it off with -1
    # Drawn here, so that the nodes that share a request share its randomness. OpenAI's seeds are
    # signed, ours are not.
    seed = secrets.randbits(63) if body.seed is None else body.seed & _SEED_BITS
    return Sampling(
        **given,
        seed=seed,
        logit_bias=_logit_bias(body, model),
        ignore_eos=body.ignore_eos,
        top_logprobs=_top_logprobs(body),
    )


def checked_grammar(body: CompletionBody, grammars: GrammarChecker) -> str:
    """GBNF, or "" for none. Blocks while a new grammar is tried.

    Raises: ConfigError saying what is wrong with the grammar or schema.
    """
    if body.ignore_eos:
        raise RequestError(
            "ignore_eos: need it off beside a grammar or schema, which has an end, have it on",
            param="ignore_eos",
        )
    wish = body.response_format
    if isinstance(wish, JsonObject | JsonSchema):
        if body.grammar:
            raise RequestError(
                "grammar: need one of grammar and response_format, have both", param="grammar"
            )
        schema = wish.json_schema.schema if isinstance(wish, JsonSchema) else {"type": "object"}
        return grammars.json_schema(schema)
    return grammars.gbnf(body.grammar) if body.grammar else ""


def has_grammar(body: CompletionBody) -> bool:
    return bool(body.grammar) or isinstance(body.response_format, JsonObject | JsonSchema)


def max_tokens_of(body: CompletionBody, num_prompt_tokens: int, context_tokens: int) -> int:
    """The answer's longest length: what is asked for, or what is left of the context."""
    asked, asked_by = body.max_tokens, "max_tokens"
    if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
        if asked is not None:
            raise RequestError(
                "max_tokens: need one of max_tokens and max_completion_tokens, have both",
                param="max_tokens",
            )
        asked, asked_by = body.max_completion_tokens, "max_completion_tokens"
    param = "messages" if isinstance(body, ChatBody) else "prompt"
    if not num_prompt_tokens:
        raise RequestError(f"{param}: need at least one token, have none", param=param)
    if num_prompt_tokens < context_tokens:
        param = asked_by  # the prompt alone would fit
    need = num_prompt_tokens + (asked or 1)
    if need > context_tokens:
        raise RequestError(
            f"{param}: need a context of {need} tokens ({num_prompt_tokens} in the prompt, "
            f"{asked or 'at least 1'} for the answer), have {context_tokens}; shorten the prompt, "
            f"lower max_tokens, or serve with a larger context",
            param=param,
            code="context_length_exceeded",
        )
    return asked or context_tokens - num_prompt_tokens


def _logit_bias(body: CompletionBody, model: ServedModel) -> tuple[tuple[int, float], ...]:
    for key in body.logit_bias:
        if not (key.isascii() and key.isdigit() and int(key) < model.vocab.num_tokens):
            raise RequestError(
                f"logit_bias: need tokens from 0 to {model.vocab.num_tokens - 1}, have {key!r}",
                param="logit_bias",
            )
    return tuple({int(key): bias for key, bias in body.logit_bias.items()}.items())


def _top_logprobs(body: CompletionBody) -> int | None:
    if isinstance(body, TextBody):
        return body.logprobs
    assert isinstance(body, ChatBody)
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs is not None:
        raise RequestError(
            "top_logprobs: need logprobs true beside it, have false", param="top_logprobs"
        )
    return None
