"""A recorded trace, or a part of one: drawn from as a workload is, with nothing left to chance.

Each request is a session of one turn, at the time it was recorded at.
"""

import math
from pathlib import Path

import msgspec

from hetero.errors import ConfigError
from hetero.workload.schedule import BLOCK_TOKENS, Schedule, Session, Turn, num_blocks
from hetero.workload.sizes import check_sizes
from hetero.workload.trace_file import TracedRequest, traced_requests


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """requests: sorted, the first at 0 s. num_failed: requests among them that failed when they
    were recorded, and are left out."""

    name: str
    requests: tuple[TracedRequest, ...]
    num_failed: int = 0

    @property
    def rate(self) -> float | None:
        """Requests per second as recorded; None of a single one, or of all at once."""
        span_s = self.requests[-1].at_s
        return (len(self.requests) - 1) / span_s if span_s > 0 else None

    def draw(
        self,
        seed: int = 0,
        *,
        num_sessions: int | None = None,
        num_requests: int | None = None,
        rate: float | None = None,
        prompt_tokens: int | None = None,
        output_tokens: int | None = None,
        max_tokens_per_sequence: int | None = None,
    ) -> Schedule:
        """The first requests; all, if neither number is given.

        seed: of no effect.
        rate: requests per second to stretch all times to; `self.rate` keeps them. None: closed
        loop, in the trace's order.
        prompt_tokens, output_tokens: instead of the recorded ones.
        max_tokens_per_sequence: requests that do not fit are left out (`num_dropped`).

        Raises: ConfigError
        """
        check_sizes(self.name, prompt_tokens, output_tokens, max_tokens_per_sequence)
        stretch = self._stretch(rate)
        limit = math.inf if max_tokens_per_sequence is None else max_tokens_per_sequence
        wanted = min(
            count for count in (num_sessions, num_requests, len(self.requests)) if count is not None
        )
        known = (max(request.blocks, default=-1) for request in self.requests if request.blocks)
        unused = max(known, default=-1) + 1
        sessions: list[Session] = []
        num_dropped = 0
        for request in self.requests:
            if len(sessions) >= wanted:
                break
            prompt = prompt_tokens or request.prompt_tokens
            output = output_tokens or request.output_tokens
            if prompt + output > limit:
                num_dropped += 1
                continue
            count = num_blocks(prompt, BLOCK_TOKENS)
            blocks = (request.blocks or ())[:count]
            missing = count - len(blocks)
            blocks += tuple(range(unused, unused + missing))
            unused += missing
            turn = Turn(prompt_tokens=prompt, output_tokens=output, blocks=blocks)
            at_s = None if stretch is None else request.at_s * stretch
            sessions.append(Session(turns=(turn,), at_s=at_s))
        if not sessions and num_dropped:
            smallest = min(
                request.prompt_tokens + request.output_tokens for request in self.requests
            )
            raise ConfigError(
                f"{self.name}: need a context of {smallest} tokens for its smallest request, "
                f"have {max_tokens_per_sequence}"
            )
        return Schedule(name=self.name, sessions=tuple(sessions), num_dropped=num_dropped)

    def _stretch(self, rate: float | None) -> float | None:
        if rate is None:
            return None
        if not 0 < rate < math.inf:
            raise ConfigError(f"rate: need requests per second above 0, have {rate:g}")
        if self.rate is None and len(self.requests) > 1:
            raise ConfigError(f"{self.name}: need times to stretch to a rate, have all at once")
        return 1.0 if self.rate is None else self.rate / rate


def read_trace(
    path: Path,
    *,
    begin_s: float = 0.0,
    end_s: float = math.inf,
    first: int | None = None,
    speed: float = 1.0,
) -> Trace:
    """begin_s, end_s: the requests of this time, in seconds from the trace's first; first: so many
    of those; speed: 2 halves the time between them.

    Raises: ConfigError, with the line where it is the file's fault
    """
    if not 0 < speed < math.inf:
        raise ConfigError(f"{path}: speed: need a factor above 0, have {speed:g}")
    if first is not None and first < 1:
        raise ConfigError(f"{path}: first: need one request or more, have {first}")
    kept: list[TracedRequest] = []
    num_failed = 0
    origin_s: float | None = None
    last_s = 0.0
    for request in traced_requests(path):
        if request is None:
            num_failed += 1
            continue
        origin_s = request.at_s if origin_s is None else origin_s
        last_s = request.at_s - origin_s
        if last_s >= end_s or len(kept) == first:
            break
        if last_s >= begin_s:
            kept.append(request)
        else:
            num_failed = 0
    if not kept:
        raise ConfigError(
            f"{path}: need a request from {begin_s:g} to {end_s:g} s, have them up to {last_s:g} s"
        )
    begin = kept[0].at_s
    requests = tuple(
        msgspec.structs.replace(request, at_s=(request.at_s - begin) / speed) for request in kept
    )
    return Trace(name=path.name, requests=requests, num_failed=num_failed)
