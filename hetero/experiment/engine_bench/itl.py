"""Figure `itl`: whether prompts that keep arriving disturb the streams that run.

Ceiling: the quiet p99. Between two steps the engine does at most one restore; beside it, the node's
other thread checks and places rows. No prefill shares the cores: a source process replays rows at a
pace, as one prefill node on another machine would. Latencies are taken where tokens leave the node.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field

from hetero.errors import EngineError
from hetero.experiment.child import node_process
from hetero.experiment.engine_bench.router_seat import RouterSeat
from hetero.experiment.engine_bench.row_source import RowSource, row_source
from hetero.experiment.engine_bench.settings import Settings
from hetero.experiment.figures import Figure, Say, at_most
from hetero.experiment.models import model_file
from hetero.experiment.turns import flat, take_turns
from hetero.messages import Finished, Generated, Joined, Reserved, Token, ToRouter
from hetero.profile.quantile import quantile
from hetero.serve.config import DecodeConfig
from hetero.serve.start import run_decode

_KV_TYPE = "q8_0"
_NODE = "d"
_NUM_ROUNDS = 2

# An arrival is restored, decodes once, and leaves: the first token came with it.
_ARRIVAL_TOKENS = 2

# Steps a stream takes outside of the measured turns, per stream: while the others still arrive,
# and while the last arrival of a turn ends.
_SPARE_STEPS = 32


def measure(settings: Settings, say: Say) -> list[Figure]:
    path = model_file(settings.folder, settings.shape, settings.quant, say)
    num_turns = 2 * (1 + _NUM_ROUNDS)
    cells = (
        settings.context_tokens
        + num_turns * settings.itl_steps
        + _SPARE_STEPS * (settings.itl_streams + num_turns)
    )
    with ExitStack() as stack:
        seat = RouterSeat(_NODE)
        stack.callback(seat.close)
        config = DecodeConfig(
            name=_NODE,
            model=str(path),
            router=seat.address,
            router_key=seat.keys.router_key,
            key=str(seat.keys.secret_file(_NODE)),
            kv_k=_KV_TYPE,
            kv_v=_KV_TYPE,
            context_tokens=cells,
            slots=settings.itl_streams + 2,
            threads=settings.num_threads,
        )
        stack.enter_context(node_process(run_decode, config))
        source = stack.enter_context(row_source(settings, path, seat.hello(_NODE)))
        say(f"itl: {settings.itl_streams} streams arrive, then the ceiling is their quiet p99")
        traffic = _Traffic(settings, seat, source)
        traffic.start_streams(cells - settings.context_tokens)
        rounds = take_turns(
            {
                "quiet": lambda: traffic.turn(arrivals=False),
                "busy": lambda: traffic.turn(arrivals=True),
            },
            _NUM_ROUNDS,
        )
    quiet, busy = flat(rounds["quiet"]), flat(rounds["busy"])
    step_s, restore_s = quantile(quiet, 0.99), max(traffic.restores_s)
    # The arrival decodes in the batch too, once: a step of one more row is not a stall.
    step_of_one_more_s = step_s * (settings.itl_streams + 1) / settings.itl_streams
    parameters = {
        "model": settings.shape.name,
        "quant": settings.quant,
        "kv_type": _KV_TYPE,
        "streams": settings.itl_streams,
        "prompt_tokens": settings.context_tokens,
        "prompt_spread_over_s": settings.arrival_s,
        "arrivals": len(traffic.restores_s),
        "quiet_p50_s": quantile(quiet, 0.5),
        "quiet_p99_s": step_s,
        "busy_p50_s": quantile(busy, 0.5),
        "busy_p99_s": quantile(busy, 0.99),
        "longest_restore_s": restore_s,
        "longest_busy_s": max(busy),
    }
    arms = {"quiet_s": quiet, "busy_s": busy, "restore_s": traffic.restores_s}
    return [
        Figure(
            name="itl_p99",
            says="p99 inter-token latency while prompts arrive over the quiet one",
            value=quantile(busy, 0.99) / step_s,
            unit="ratio",
            target=at_most(1.3),
            arms=arms,
            parameters=parameters,
        ),
        Figure(
            name="itl_longest_stall",
            says="the longest busy latency beyond a quiet p99 step of one more row, "
            "in longest restores",
            value=(max(busy) - step_of_one_more_s) / restore_s,
            unit="ratio",
            target=at_most(1.0),
            arms={"longest_busy_s": [max(busy)], "longest_restore_s": [restore_s]},
            parameters=parameters,
        ),
    ]


@dataclass(kw_only=True)
class _Arrivals:
    """One hand-over at a time, the next as soon as one has joined."""

    wanted: bool = False
    under_way: str | None = None
    num_begun: int = 0


@dataclass
class _Traffic:
    """Streams that run, prompts that come, and the time between a stream's tokens."""

    settings: Settings
    seat: RouterSeat
    source: RowSource
    restores_s: list[float] = field(default_factory=list)
    _arrivals: _Arrivals = field(default_factory=_Arrivals)
    _last_token_at: dict[str, float] = field(default_factory=dict)

    def start_streams(self, max_tokens: int) -> None:
        for index in range(self.settings.itl_streams):
            name = f"stream{index}"
            ticket = self.seat.ticket(_NODE, name, self.settings.context_tokens, max_tokens)
            self.source.hand_over(name, ticket, over_s=0.0)
            self.seat.wait_for(Joined, name)
        # Every stream has a first token behind it before any time is taken.
        names = {f"stream{index}" for index in range(self.settings.itl_streams)}
        while self._last_token_at.keys() != names:
            for came_at, message in self.seat.receive():
                if isinstance(message, Generated):
                    self._last_token_at |= {t.request_id: came_at for t in message.tokens}

    def turn(self, *, arrivals: bool) -> list[float]:
        """Inter-token latencies of `itl_steps` tokens of each stream."""
        latencies: list[float] = []
        self._arrivals.wanted = arrivals
        need = self.settings.itl_steps * self.settings.itl_streams
        while len(latencies) < need:
            latencies += self._exchange()
        self._arrivals.wanted = False
        while self._arrivals.under_way is not None:
            self._exchange()
        return latencies

    def _exchange(self) -> list[float]:
        if self._arrivals.wanted and self._arrivals.under_way is None:
            name = self._arrivals.under_way = f"arrival{self._arrivals.num_begun}"
            self._arrivals.num_begun += 1
            self.seat.reserve(_NODE, name, self.settings.context_tokens, _ARRIVAL_TOKENS)
        latencies: list[float] = []
        for came_at, message in self.seat.receive():
            if isinstance(message, Generated):
                latencies += self._clock(message.tokens, came_at)
            else:
                self._follow(message)
        return latencies

    def _clock(self, tokens: tuple[Token, ...], came_at: float) -> list[float]:
        latencies = []
        for token in tokens:
            before = self._last_token_at.get(token.request_id)
            if before is not None:  # not of an arrival
                latencies.append(came_at - before)
                self._last_token_at[token.request_id] = came_at
        return latencies

    def _follow(self, message: ToRouter) -> None:
        match message:
            case Reserved(request_id=name) if name == self._arrivals.under_way:
                self.source.hand_over(name, message.ticket, self.settings.arrival_s)
            case Joined(request_id=name) if name == self._arrivals.under_way:
                self.restores_s.append(message.restore_s)
                self._arrivals.under_way = None
            case Finished(request_id=name) if name in self._last_token_at:
                raise EngineError(f"{name}: need it to run on, it has ended")
