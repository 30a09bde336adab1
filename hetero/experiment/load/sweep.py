"""A workload at one concurrency or rate after another, and which is the best that meets an SLO."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import msgspec

from hetero.errors import ConfigError
from hetero.experiment.load.cost import Cost, cost_of
from hetero.experiment.load.endpoint import Mode
from hetero.experiment.load.execute import LoadOutcome, execute
from hetero.experiment.load.plan import LoadPlan
from hetero.experiment.load.record import RequestRecord
from hetero.experiment.load.statistic import statistic
from hetero.experiment.load.steady import enough_requests
from hetero.routing.route import Wish
from hetero.workload.named import LoadSource, load_workload
from hetero.workload.schedule import Schedule
from hetero.workload.trace import Trace
from hetero.workload.workload import Workload

Say = Callable[[str], None]

_STATISTICS = ("p50", "p90", "p95", "p99", "mean", "max")
# Prompts of two points of a sweep must not be alike: the second would find the first's in a cache.
_SEEDS = 1000
_OPEN_REQUESTS = 32
_PROGRESS_S = 2.0
_AS_RECORDED = "as recorded"


class SweepSettings(msgspec.Struct, frozen=True, kw_only=True):
    """concurrencies or rates; neither: the workload's own rate, or some concurrencies."""

    url: str
    workload: str
    concurrencies: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    requests: int | None = None
    duration_s: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    context_tokens: int | None = None
    warmup: int = 2
    seed: int = 0  # of sizes and times
    token_seed: int = 0
    model: str | None = None
    endpoint: Mode = "auto"
    route: Wish | None = None
    temperature: float = 0.0
    timeout_s: float = 600.0
    slo: str = ""
    per_hour: float | None = None


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the table: one load, at one concurrency or rate.

    is_as_recorded: a trace at its own times; `rate` is their mean.
    """

    concurrency: int | None
    rate: float | None
    is_as_recorded: bool
    outcome: LoadOutcome
    cost: Cost | None
    num_clipped: int
    num_dropped: int

    @property
    def name(self) -> str:
        if self.is_as_recorded:
            return _AS_RECORDED
        if self.rate is not None:
            return f"{self.rate:g}"
        return str(self.concurrency)

    def value(self, metric: str) -> float | None:
        """By its name: a scalar's, or SAMPLE_STATISTIC."""
        metrics = self.outcome.metrics
        if metric in metrics.scalars:
            return metrics.scalars[metric]
        sample, _, name = metric.rpartition("_")
        values = metrics.samples.get(sample)
        return statistic(values, name) if values else None

    def to_json(self) -> dict[str, Any]:
        samples = self.outcome.metrics.samples
        return {
            "concurrency": self.concurrency,
            "rate": self.rate,
            **self.outcome.summary(),
            "statistics": {
                f"{sample}_{name}": statistic(values, name)
                for sample, values in samples.items()
                for name in _STATISTICS
            },
            "cost": msgspec.to_builtins(self.cost),
            "num_clipped": self.num_clipped,
            "num_dropped": self.num_dropped,
        }


def sweep(settings: SweepSettings, say: Say) -> Iterator[Point]:
    """Ends after a point that was interrupted.

    Raises: ConfigError, PeerError
    """
    workload = load_workload(settings.workload)
    for index, (concurrency, rate) in enumerate(_points(settings, workload)):
        schedule = _schedule(settings, workload, concurrency, rate)
        is_as_recorded = isinstance(workload, Trace) and rate is not None and rate == workload.rate
        what = f"concurrency {concurrency}" if rate is None else f"{rate:g} sessions/s"
        whole = f"{schedule.num_requests} requests"
        if is_as_recorded:
            what = _AS_RECORDED
            whole += f" over {timedelta(seconds=round(schedule.sessions[-1].at_s or 0))}"
        say(f"{what}: {whole}")
        outcome = execute(
            LoadPlan(
                url=settings.url,
                schedule=schedule,
                concurrency=concurrency or 1,
                duration_s=settings.duration_s,
                warmup=settings.warmup,
                seed=settings.token_seed * _SEEDS + index,
                model=settings.model,
                endpoint=settings.endpoint,
                route=settings.route,
                temperature=settings.temperature,
                timeout_s=settings.timeout_s,
                slo=settings.slo,
            ),
            _Progress(say, what, schedule.num_requests),
        )
        duration_s = outcome.metrics.scalars.get("duration", 0.0)
        yield Point(
            concurrency=concurrency,
            rate=rate,
            is_as_recorded=is_as_recorded,
            outcome=outcome,
            cost=(
                None
                if settings.per_hour is None
                else cost_of(outcome.records, duration_s, settings.per_hour)
            ),
            num_clipped=schedule.num_clipped,
            num_dropped=schedule.num_dropped,
        )
        if outcome.is_partial:
            return


class _Progress:
    """A line now and then. Of a repeated schedule more than the whole is done."""

    def __init__(self, say: Say, what: str, whole: int) -> None:
        self._say = say
        self._what = what
        self._whole = whole
        self._num_done = 0
        self._said_s = 0.0

    def __call__(self, record: RequestRecord) -> None:
        self._num_done += 1
        now_s = time.monotonic()
        if now_s - self._said_s >= _PROGRESS_S:
            self._said_s = now_s
            self._say(f"{self._what}: {self._num_done} of {self._whole} requests done")


def best_point(points: Sequence[Point]) -> Point | None:
    """Of those that meet the SLO, the one with most requests a second that do."""
    good = [point for point in points if point.value("slo_met") == 1]
    return max(good, key=lambda point: point.value("goodput") or 0.0, default=None)


def _points(settings: SweepSettings, workload: LoadSource) -> list[tuple[int | None, float | None]]:
    if settings.concurrencies and settings.rates:
        raise ConfigError("bench: need --concurrency or --rate, have both")
    rates = settings.rates
    if not settings.concurrencies and not rates and workload.rate is not None:
        rates = (workload.rate,)
    if rates:
        return [(None, rate) for rate in rates]
    return [(concurrency, None) for concurrency in settings.concurrencies or (1, 2, 4, 8)]


def _schedule(
    settings: SweepSettings, workload: LoadSource, concurrency: int | None, rate: float | None
) -> Schedule:
    requests = settings.requests
    if requests is None and isinstance(workload, Workload):
        if rate is None:
            requests = enough_requests(concurrency or 1)
        else:
            requests = math.ceil(rate * (settings.duration_s or 0.0)) or _OPEN_REQUESTS
    return workload.draw(
        settings.seed,
        num_requests=requests,
        rate=rate,
        prompt_tokens=settings.prompt_tokens,
        output_tokens=settings.output_tokens,
        max_tokens_per_sequence=settings.context_tokens,
    )
