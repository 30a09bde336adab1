"""Service level objectives: `ttft_p95:2s,tpot_p95:100ms`.

Each is a metric (ttft, tpot, itl, latency), a statistic (p50, p99.9, mean, max) and a bound with
its unit (s, ms, us). A request meets them if each of its own values is within the bound; they are
met if the statistics are, a failed request counting as one that never ended.
"""

import re
from collections.abc import Iterable, Sequence

import msgspec

from hetero.errors import ConfigError
from hetero.experiment.load.record import RequestRecord
from hetero.experiment.load.statistic import statistic

_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
LATENCIES = ("ttft", "tpot", "itl", "latency")
_NEED = f"need METRIC_STATISTIC:TIME, as ttft_p95:2s, with a metric of {', '.join(LATENCIES)}"
_BOUND = re.compile(r"([a-z]+)_(p\d{1,2}(?:\.\d+)?|mean|max):(\d+(?:\.\d+)?)\s*([a-z]+)")

# Seconds that no answer takes; infinity would turn percentiles beside it into no number.
_NEVER_S = 1e18


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    metric: str
    statistic: str
    at_most_s: float

    @property
    def name(self) -> str:
        return f"{self.metric}_{self.statistic}"


def parse_slo(text: str) -> tuple[Bound, ...]:
    """Raises: ConfigError naming the part that is wrong."""
    return tuple(_bound(part.strip()) for part in text.split(",")) if text.strip() else ()


def meets(record: RequestRecord, bounds: Sequence[Bound]) -> bool:
    """Whether one request does. Of two bounds of a metric (a median's, a p95's) the wider counts:
    the narrower is none for every request."""
    if not record.is_ok:
        return False
    widest: dict[str, float] = {}
    for bound in bounds:
        widest[bound.metric] = max(bound.at_most_s, widest.get(bound.metric, 0.0))
    return all(
        value <= at_most_s
        for metric, at_most_s in widest.items()
        for value in values_of(record, metric)
    )


def are_met(records: Iterable[RequestRecord], bounds: Sequence[Bound]) -> bool:
    records = list(records)
    for bound in bounds:
        values = [
            value
            for record in records
            for value in (values_of(record, bound.metric) if record.is_ok else [_NEVER_S])
        ]
        if values and statistic(values, bound.statistic) > bound.at_most_s:
            return False
    return bool(records)


def values_of(record: RequestRecord, metric: str) -> list[float]:
    """A request's own, of one of LATENCIES. Of `itl` all times between two pieces."""
    if metric == "itl":
        pairs = zip(record.piece_s, record.piece_s[1:], strict=False)
        return [later - earlier for earlier, later in pairs]
    value = {"ttft": record.ttft_s, "tpot": record.tpot_s, "latency": record.latency_s}[metric]
    return [] if value is None else [value]


def _bound(part: str) -> Bound:
    found = _BOUND.fullmatch(part)
    if found is None:
        raise ConfigError(f"slo: {_NEED}; have {part!r}")
    metric, name, number, unit = found.groups()
    if metric not in LATENCIES:
        raise ConfigError(f"slo {part}: need a metric of {', '.join(LATENCIES)}, have {metric}")
    if unit not in _UNITS:
        raise ConfigError(f"slo {part}: need a unit of {', '.join(_UNITS)}, have {unit}")
    if float(number) == 0 or (name.startswith("p") and float(name[1:]) == 0):
        raise ConfigError(f"slo {part}: need a bound and a percentile above 0")
    return Bound(metric=metric, statistic=name, at_most_s=float(number) * _UNITS[unit])
