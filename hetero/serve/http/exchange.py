"""One completion request from tokens to answer, whole or as a stream of events."""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from hetero.errors import EngineError
from hetero.serve.http.answer import Answer, Delta, Entry, FinishReason
from hetero.serve.http.completions import Json, Shape, route_and_timings, usage_of
from hetero.serve.http.failures import failure_of, log_failure
from hetero.serve.http.openai import CompletionBody
from hetero.serve.http.sse import DONE, KEEP_ALIVE, EventStream, Generation, event, until_disconnect
from hetero.serve.http.tokens import Pieces
from hetero.serve.service import ANSWERED, Request, ServedModel, Service, Update


def request_id(shape: Shape) -> str:
    return shape.id_prefix + secrets.token_hex(12)


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A checked request and how to word its answer."""

    body: CompletionBody
    shape: Shape
    pieces: Pieces
    model: ServedModel
    request: Request
    tokenize_s: float
    keep_alive_s: float

    async def respond(self, service: Service, http: HttpRequest) -> Response:
        """Raises: what the router raises before the first update, ClientGone."""
        generation = Generation(service.generate(self.request))
        answer = Answer(
            self.pieces, num_choices=self.request.num_choices, stop=self.body.stop_strings
        )
        try:
            if not self.body.stream:
                return JSONResponse(await until_disconnect(http, self._whole(generation, answer)))
            # A failure before anything was generated still gets a status of its own. A prompt
            # that takes longer to read than this begins its stream with a comment.
            first = await until_disconnect(http, generation.next(self.keep_alive_s))
        except StopAsyncIteration:
            raise self._unfinished() from None
        except BaseException:
            generation.close()
            raise
        return EventStream(self._events(generation, answer, first), generation)

    async def _whole(self, generation: Generation, answer: Answer) -> Json:
        num_choices = self.request.num_choices
        texts = [""] * num_choices
        entries: list[list[Entry]] = [[] for _ in range(num_choices)]
        tokens: list[list[int]] = [[] for _ in range(num_choices)]
        reasons: list[FinishReason | None] = [None] * num_choices
        while answer.wanted:
            try:
                update = await generation.next()
            except StopAsyncIteration:
                break
            delta = answer.add(update) if update else None
            if delta:
                texts[delta.choice] += delta.text
                entries[delta.choice] += delta.entries
                tokens[delta.choice] += delta.tokens
                reasons[delta.choice] = delta.finish_reason
        generation.close(ANSWERED)
        choices = [
            self.shape.whole(index, texts[index], entries[index], reason) | self._ids(tokens[index])
            for index, reason in enumerate(reasons)
            if reason is not None
        ]
        if len(choices) < num_choices:
            raise self._unfinished()
        return {
            **self._head(self.shape.whole_object),
            "choices": choices,
            "usage": usage_of(len(self.request.prompt), answer),
            **route_and_timings(answer.summary, self.tokenize_s),
        }

    async def _events(
        self, generation: Generation, answer: Answer, first: Update | None
    ) -> AsyncIterator[bytes]:
        head = self._head(self.shape.chunk_object)
        with_usage = self.body.stream_options.include_usage
        if with_usage:
            head["usage"] = None
        begun: set[int] = set()
        # The very last chunk carries route and timings: it waits for the router's summary.
        last: Delta | None = None
        update = first
        try:
            while True:
                if update is None:
                    yield KEEP_ALIVE
                elif delta := answer.add(update):
                    if delta.choice not in begun:
                        begun.add(delta.choice)
                        if opening := self.shape.first_chunk(delta.choice):
                            yield event({**head, "choices": [opening]})
                    if answer.ended:
                        last = delta
                    else:
                        yield event({**head, "choices": [self._chunk(delta)]})
                if not answer.wanted:
                    break
                try:
                    update = await generation.next(self.keep_alive_s)
                except StopAsyncIteration:
                    break
            generation.close(ANSWERED)
            if last is None:
                raise self._unfinished()
        except Exception as error:  # the status is sent: the stream itself must say it
            log_failure(error, self.request.request_id)
            yield event(failure_of(error).body)
            return
        ours = route_and_timings(answer.summary, self.tokenize_s)
        closing = {**head, "choices": [self._chunk(last)]}
        if with_usage:
            usage = usage_of(len(self.request.prompt), answer)
            yield event(closing)
            yield event({**head, "choices": [], "usage": usage, **ours})
        else:
            yield event(closing | ours)
        yield DONE

    def _chunk(self, delta: Delta) -> Json:
        return self.shape.chunk(delta) | self._ids(delta.tokens)

    def _ids(self, tokens: Sequence[int]) -> Json:
        return {"tokens": list(tokens)} if self.body.return_tokens else {}

    def _head(self, kind: str) -> Json:
        return {
            "id": self.request.request_id,
            "object": kind,
            "created": int(time.time()),
            "model": self.model.name,
        }

    def _unfinished(self) -> EngineError:
        return EngineError(
            f"request {self.request.request_id}: need {self.request.num_choices} finished "
            f"choices, have fewer at the end of the router's updates"
        )
