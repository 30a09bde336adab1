"""What can be measured of an arm, by name: units, labels for axes, and which way is better.

One grammar wherever a metric is named (SLOs, figures, checks, plots): a scalar's name, or a
sample's with `_pNN`, `_mean` or `_max`; `beside.` before it: of the load beside the measured one.
"""

import re
from collections.abc import Iterable
from typing import Literal

import msgspec

from hetero.errors import ConfigError
from hetero.near import near

Kind = Literal["serving", "kv-quality", "kv-wire"]
Better = Literal["lower", "higher"]

BESIDE = "beside."

_STATISTIC = re.compile(r"(?P<base>.+)_(?P<statistic>mean|max|p\d{1,2}(\.\d+)?)")
# Of a node by its name: there are as many as a cluster has.
_NODE_CORES = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*_cores")
_STATISTICS = ("p50", "p90", "p95", "p99", "mean", "max")  # those suggested


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """unit: "" of a pure number. better: None where neither direction is. sampled: every request
    (prompt, transfer) gives one or more, so that it has percentiles; else a number of a whole run.
    """

    label: str
    unit: str
    better: Better | None
    sampled: bool


class NamedMetric(msgspec.Struct, frozen=True, kw_only=True):
    """A metric's name, taken apart. base: its key in an arm's scalars or samples, without what
    says how samples become one number."""

    beside: bool
    base: str
    statistic: str | None  # "p95", "mean", "max"; None: of a scalar
    metric: Metric

    @property
    def share(self) -> float | None:
        """Of a percentile: 0.95 of p95. None: it is none."""
        if self.statistic is None or not self.statistic.startswith("p"):
            return None
        return round(float(self.statistic[1:]) / 100, 9)  # 99.9 / 100 is a little above 0.999

    @property
    def key(self) -> str:
        """As an arm's samples and scalars have it."""
        return f"{BESIDE}{self.base}" if self.beside else self.base

    @property
    def axis_label(self) -> str:
        words = [self.metric.label, *([self.statistic] if self.statistic else [])]
        if self.beside:
            words.append("of the load beside")
        unit = f" ({self.metric.unit})" if self.metric.unit else ""
        return " ".join(words) + unit


def _sample(label: str, unit: str, better: Better | None = "lower") -> Metric:
    return Metric(label=label, unit=unit, better=better, sampled=True)


def _scalar(label: str, unit: str, better: Better | None) -> Metric:
    return Metric(label=label, unit=unit, better=better, sampled=False)


_NODE_CORES_METRIC = _scalar("processor time of a node", "cores", None)

METRICS: dict[Kind, dict[str, Metric]] = {
    "serving": {
        # Of each request, as its client saw it.
        "ttft": _sample("time to first token", "s"),
        "tpot": _sample("time per output token", "s"),
        "itl": _sample("gap between two pieces", "s"),
        "latency": _sample("time to the last token", "s"),
        "late": _sample("lateness of the load generator", "s"),
        # Of each request, as the server told it.
        "tokenize": _sample("tokenizing", "s"),
        "prefill": _sample("prefill", "s"),
        "pack": _sample("packing the cache", "s"),
        "wire": _sample("first row sent to last acknowledged", "s"),
        "restore": _sample("restoring the cache", "s"),
        "exposed": _sample("exposed transfer", "s"),
        "last_group": _sample("last layer group on the wire", "s"),
        "server_ttft": _sample("time to first token, by the server", "s"),
        "server_tpot": _sample("time per output token, by the server", "s"),
        "kv_bytes": _sample("cache moved", "B"),
        # Of a run.
        "throughput": _scalar("output throughput", "tokens/s", "higher"),
        "prompt_throughput": _scalar("prompt throughput", "tokens/s", "higher"),
        "request_rate": _scalar("finished requests", "requests/s", "higher"),
        "goodput": _scalar("goodput", "requests/s", "higher"),
        "slo_met": _scalar("SLO met", "", "higher"),
        "error_share": _scalar("share of requests that failed", "", "lower"),
        "requests": _scalar("requests", "", None),
        "duration": _scalar("duration", "s", None),
        "load_cores": _scalar("processor time of the load generator", "cores", "lower"),
        "router_cores": _scalar("processor time of the router", "cores", "lower"),
    },
    "kv-quality": {
        "kld": _sample("KL divergence", "nats"),
        "recall": _sample("recall", "", "higher"),
        "margin": _sample("margin of the right token's logit", "", "higher"),
        "recall_share": _scalar("share of questions recalled", "", "higher"),
        "same_top": _scalar("share of positions with the same top token", "", "higher"),
        "compared_positions": _scalar("positions compared", "", None),
        "perplexity": _scalar("perplexity", "", "lower"),
        "perplexity_ratio": _scalar("perplexity over that of the f16 cache", "", "lower"),
        "kv_bytes_per_token": _scalar("cache per token", "B", "lower"),
        "k_rotation": _scalar("values of K rotated together", "", None),
        "v_rotation": _scalar("values of V rotated together", "", None),
    },
    "kv-wire": {
        "bytes_per_s": _sample("rate of one of two overlapping transfers", "B/s", "higher"),
        "restore": _sample("restoring the cache", "s"),
        "kv_bytes_per_s": _scalar("goodput of all transfers", "B/s", "higher"),
        "source_cores": _scalar("processor time of the source", "cores", "lower"),
        "sink_cores": _scalar("processor time of the sink", "cores", "lower"),
        "core_s_per_gb": _scalar("processor time", "core s/GB", "lower"),
        "share_of_plain": _scalar("share of a plain stream's goodput", "", "higher"),
        "plain_bytes_per_s": _scalar("goodput of a plain stream", "B/s", None),
        "plain_core_s_per_gb": _scalar("processor time of a plain stream", "core s/GB", None),
        "connections_used": _scalar("connections of a transfer", "", None),
        "transfer_bytes": _scalar("size of a transfer", "B", None),
        "frame_bytes": _scalar("size of a frame", "B", None),
    },
}


def parse_metric(kind: Kind, name: str) -> NamedMetric:
    """Raises: ConfigError with near names, or with what a name lacks."""
    known = METRICS[kind]
    beside = name.startswith(BESIDE)
    if beside and kind != "serving":
        raise ConfigError(f"{name}: need a load beside for that, have a {kind} recipe")
    plain = name.removeprefix(BESIDE)
    if beside and plain.endswith("_cores"):
        raise ConfigError(f"{name}: processor time is of a process, not of one load: use {plain}")
    if plain in known:
        metric = known[plain]
        if metric.sampled:
            ways = ", ".join(f"{name}_{each}" for each in ("p95", "mean", "max"))
            raise ConfigError(f"{name}: need one number of many, as {ways}")
        return NamedMetric(beside=beside, base=plain, statistic=None, metric=metric)
    match = _STATISTIC.fullmatch(plain)
    if match is not None and match["base"] in known:
        return _sampled(name, beside, match["base"], match["statistic"], known)
    if kind == "serving" and not beside and _NODE_CORES.fullmatch(plain):
        return NamedMetric(beside=False, base=plain, statistic=None, metric=_NODE_CORES_METRIC)
    hint = near(plain, _all_names(known), "; docs/recipes.md lists them")
    raise ConfigError(f"{name}: no such metric of {kind}{hint}")


def _sampled(
    name: str, beside: bool, base: str, statistic: str, known: dict[str, Metric]
) -> NamedMetric:
    if not known[base].sampled:
        raise ConfigError(f"{name}: {base} is one number of a whole run: leave _{statistic} out")
    if statistic.startswith("p") and float(statistic[1:]) == 0:
        raise ConfigError(f"{name}: need a percentile above 0 and below 100")
    return NamedMetric(beside=beside, base=base, statistic=statistic, metric=known[base])


def _all_names(known: dict[str, Metric]) -> Iterable[str]:
    for name, metric in known.items():
        yield from (f"{name}_{each}" for each in _STATISTICS) if metric.sampled else (name,)
