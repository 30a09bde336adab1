"""The OpenAI-compatible HTTP front: text and JSON outside, the router's tokens inside.

It holds no state of requests beyond their connections; what it answers with comes from
`completions`, what goes wrong from `failures`.
"""

import functools
import time
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread
import msgspec
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from hetero.decode.grammar import GrammarChecker
from hetero.errors import HeteroError, PlanError
from hetero.serve.http.completions import ChatShape, Json, Shape, TextShape
from hetero.serve.http.exchange import Exchange, request_id
from hetero.serve.http.failures import Failure, RequestError, failure_of, log_failure
from hetero.serve.http.openai import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    TextBody,
    TokenizeBody,
    parse,
)
from hetero.serve.http.sampling import checked_grammar, has_grammar, max_tokens_of, sampling_of
from hetero.serve.http.sse import ClientGone
from hetero.serve.http.tokens import Pieces, chat_tokens, checked_tokens, text_tokens
from hetero.serve.service import Request, ServedModel, Service

_T = TypeVar("_T")

# The longest prompt nodes accept, 4M tokens, is some 16 MiB of text; JSON may double it.
MAX_BODY_BYTES = 32 * 2**20

# Each is a process with a core of its own to burn, for seconds if the grammar is bad.
_NUM_GRAMMAR_TRIALS = 2

# nginx's status for a client that went away before its answer; only logs see it.
_CLIENT_GONE = 499


def make_app(service: Service, grammars: GrammarChecker, *, keep_alive_s: float = 10.0) -> FastAPI:
    """The front of `service`. `keep_alive_s`: silence after which a stream sends a comment."""
    app = FastAPI(title="hetero", docs_url=None, redoc_url=None)
    front = _Front(service, grammars, keep_alive_s)
    app.add_api_route("/v1/chat/completions", front.chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/completions", front.complete, methods=["POST"], response_model=None)
    app.add_api_route("/v1/models", front.models, methods=["GET"], response_model=None)
    app.add_api_route("/health", front.health, methods=["GET"], response_model=None)
    app.add_api_route("/tokenize", front.tokenize, methods=["POST"], response_model=None)
    app.add_api_route("/detokenize", front.detokenize, methods=["POST"], response_model=None)
    app.add_api_route("/metrics", front.metrics, methods=["GET"], response_model=None)
    app.add_api_route("/status", front.status, methods=["GET"], response_model=None)
    app.add_exception_handler(HeteroError, _failed)
    app.add_exception_handler(HTTPException, _not_routed)
    app.add_exception_handler(ClientGone, _client_gone)
    # The server logs it with its traceback.
    app.add_exception_handler(Exception, _broken)
    return app


class _Front:
    def __init__(self, service: Service, grammars: GrammarChecker, keep_alive_s: float) -> None:
        self._service = service
        self._grammars = grammars
        self._keep_alive_s = keep_alive_s
        self._pieces = Pieces(service.model.vocab)
        self._grammar_threads = anyio.CapacityLimiter(_NUM_GRAMMAR_TRIALS)

    async def chat(self, http: HttpRequest) -> Response:
        body = parse(await _read(http), ChatBody)
        shape = ChatShape(self._pieces, logprobs=body.logprobs)
        return await self._respond(http, body, shape, lambda model: chat_tokens(model, body))

    async def complete(self, http: HttpRequest) -> Response:
        body = parse(await _read(http), TextBody)
        shape = TextShape(self._pieces, logprobs=body.logprobs is not None)
        return await self._respond(http, body, shape, lambda model: text_tokens(model, body))

    async def _respond(
        self,
        http: HttpRequest,
        body: CompletionBody,
        shape: Shape,
        tokenize: Callable[[ServedModel], list[int]],
    ) -> Response:
        received_at = time.perf_counter()
        model = self._ready_model(body.model)
        prompt = await _in_thread(tokenize, model)
        tokenize_s = time.perf_counter() - received_at
        max_tokens = max_tokens_of(body, len(prompt), model.context_tokens)
        # All that is cheap to refuse is refused before a grammar is tried.
        sampling = sampling_of(body, model)
        if has_grammar(body):
            grammar = await _in_thread(
                checked_grammar, body, self._grammars, limiter=self._grammar_threads
            )
            sampling = msgspec.structs.replace(sampling, grammar=grammar)
        exchange = Exchange(
            body=body,
            shape=shape,
            pieces=self._pieces,
            model=model,
            request=Request(
                request_id=request_id(shape),
                prompt=tuple(prompt),
                max_tokens=max_tokens,
                num_choices=body.n,
                sampling=sampling,
                route=body.route,
                received_at=received_at,
            ),
            tokenize_s=tokenize_s,
            keep_alive_s=self._keep_alive_s,
        )
        return await exchange.respond(self._service, http)

    async def models(self) -> Json:
        model = self._service.model
        entry = {"id": model.name, "object": "model", "created": model.created}
        return {"object": "list", "data": [{**entry, "owned_by": "hetero"}]}

    async def health(self) -> Json:
        self._ready_model(None)
        return {"status": "ok"}

    async def tokenize(self, http: HttpRequest) -> Json:
        body = parse(await _read(http), TokenizeBody)
        model = self._named_model(body.model)
        if (body.content is None) == (body.prompt is None):
            raise RequestError("content: need one of content and prompt", param="content")
        tokens = await _in_thread(
            functools.partial(
                model.vocab.tokenize,
                body.content or body.prompt or "",
                add_special=body.add_special,
                parse_special=body.parse_special,
            )
        )
        if not body.with_pieces:
            return {"tokens": tokens}
        return {"tokens": [{"id": token, "piece": self._piece(token)} for token in tokens]}

    async def detokenize(self, http: HttpRequest) -> Json:
        body = parse(await _read(http), DetokenizeBody)
        model = self._named_model(body.model)
        tokens = checked_tokens(model, body.tokens, "tokens")
        return {"content": await _in_thread(model.vocab.detokenize, tokens)}

    async def metrics(self) -> Response:
        return PlainTextResponse(self._service.metrics(), media_type="text/plain; version=0.0.4")

    async def status(self) -> Json:
        return self._service.status()

    def _named_model(self, name: str | None) -> ServedModel:
        model = self._service.model
        if name is not None and name != model.name:
            raise RequestError(
                f"model: need {model.name!r}, which is served here, have {name!r}",
                param="model",
                code="model_not_found",
                status=404,
            )
        return model

    def _ready_model(self, name: str | None) -> ServedModel:
        model = self._named_model(name)
        if model.context_tokens == 0:
            raise PlanError("need a decode node that is ready, have none yet; try again soon")
        return model

    def _piece(self, token: int) -> str | list[int]:
        """Text, or bytes if it is only part of a character, as llama-server has it."""
        piece = self._pieces[token]
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return list(piece)


async def _read(http: HttpRequest) -> bytes:
    body = bytearray()
    async for part in http.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise RequestError(f"body: need at most {MAX_BODY_BYTES} bytes, have more", status=413)
    return bytes(body)


async def _in_thread(
    call: Callable[..., _T], *args: object, limiter: anyio.CapacityLimiter | None = None
) -> _T:
    """A long prompt must not stall the other streams."""
    return await anyio.to_thread.run_sync(functools.partial(call, *args), limiter=limiter)


async def _failed(_: HttpRequest, error: Exception) -> Response:
    log_failure(error, None)
    return failure_of(error).response()


async def _not_routed(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{http.method} {http.url.path}: {error.detail}"
    failure = Failure(status=error.status_code, message=message)
    return JSONResponse(failure.body, status_code=error.status_code, headers=error.headers)


async def _client_gone(_: HttpRequest, __: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)


async def _broken(_: HttpRequest, error: Exception) -> Response:
    return failure_of(error).response()
