"""What the HTTP front asks of the router behind it, in tokens; text stays in front.

`generate` yields tokens in order per choice as they are drawn, one `Finished` per choice, and a
`Summary` whenever there is more to say of the stages, the last one at the end. Closing the
generator early cancels the request everywhere.
"""

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Protocol

from hetero.llama.model import Vocab
from hetero.messages import Finished, Sampling, Token
from hetero.routing.route import Route, Wish

# The message of a cancellation by a client that has all it wants: a stop string ended its answer.
ANSWERED = "answered"


@dataclass(frozen=True, kw_only=True)
class Request:
    request_id: str
    prompt: tuple[int, ...]
    max_tokens: int
    num_choices: int
    sampling: Sampling
    route: Wish = "auto"
    received_at: float = field(default_factory=time.perf_counter)


@dataclass(kw_only=True)
class Timings:
    """Seconds by stage; a stage that did not happen stays 0. The contract's `timings` object."""

    tokenize_s: float = 0.0
    prefill_s: float = 0.0
    pack_s: float = 0.0
    wire_s: float = 0.0
    restore_s: float = 0.0
    exposed_s: float = 0.0  # first token drawn -> sequence in the decode batch
    ttft_s: float = 0.0  # request in -> first token out
    tpot_s: float = 0.0
    last_group_s: float = 0.0  # last layer group handed to the wire -> acknowledged


@dataclass(frozen=True, kw_only=True)
class Summary:
    route: Route
    timings: Timings
    kv_bytes: int = 0
    num_chunks: int = 0
    prefill_engine: str | None = None
    emulated: str | None = None  # the device whose time a replay of recorded rows took
    attention: str | None = None
    kv_k: str | None = None
    kv_v: str | None = None


Update = Token | Finished | Summary


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What the front must know of the model to turn text into tokens and back."""

    name: str
    vocab: Vocab
    chat_template: str | None
    context_tokens: int  # of the largest decode node; 0 while none is ready
    created: int = field(default=0)  # unix seconds


class Service(Protocol):
    @property
    def model(self) -> ServedModel: ...

    def generate(self, request: Request) -> AsyncGenerator[Update, None]:
        """Raises: PlanError (does not fit; no node), PeerError/EngineError (a node failed)."""

    def status(self) -> dict[str, Any]:
        """The contract's `status --json` object."""

    def metrics(self) -> str:
        """Prometheus text."""
