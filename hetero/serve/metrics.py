"""What the router counts, in Prometheus text; its nodes' figures come under a `node` label."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hetero.messages import NodeLoad

_TTFT_BUCKETS_S = (0.01, 0.03, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)
_ITL_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class RouterMetrics:
    def __init__(self, loads: Callable[[], Mapping[str, NodeLoad]]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_NodeLoads(loads))
        self.requests = Counter(
            "hetero_requests",
            "Requests by route and outcome",
            ["route", "outcome"],
            registry=self._registry,
        )
        self.prompt_tokens = Counter(
            "hetero_prompt_tokens", "Prompt tokens read", registry=self._registry
        )
        self.generated_tokens = Counter(
            "hetero_generated_tokens", "Tokens generated", registry=self._registry
        )
        self.ttft = Histogram(
            "hetero_ttft_seconds",
            "Request in to first token out",
            ["route"],
            buckets=_TTFT_BUCKETS_S,
            registry=self._registry,
        )
        self.itl = Histogram(
            "hetero_itl_seconds",
            "Between two tokens of a choice",
            ["route"],
            buckets=_ITL_BUCKETS_S,
            registry=self._registry,
        )
        self.exposed = Histogram(
            "hetero_exposed_seconds",
            "First token drawn to sequence in the decode batch",
            buckets=_TTFT_BUCKETS_S,
            registry=self._registry,
        )

    def text(self) -> str:
        return generate_latest(self._registry).decode()


class _NodeLoads(Collector):
    """The nodes' last heartbeats."""

    def __init__(self, loads: Callable[[], Mapping[str, NodeLoad]]) -> None:
        self._loads = loads

    def collect(self) -> Iterable[Metric]:
        held = GaugeMetricFamily(
            "hetero_kv_bytes_held", "KV bytes a node holds for requests", labels=["node"]
        )
        moved = CounterMetricFamily(
            "hetero_kv_moved_bytes", "KV bytes sent or received", labels=["node"]
        )
        active = GaugeMetricFamily("hetero_requests_active", "Being worked on", labels=["node"])
        queued = GaugeMetricFamily("hetero_requests_queued", "Waiting for room", labels=["node"])
        for name, load in self._loads().items():
            held.add_metric([name], load.kv_bytes_held)
            moved.add_metric([name], load.kv_moved_bytes)
            active.add_metric([name], load.active)
            queued.add_metric([name], load.queued)
        yield from (held, moved, active, queued)
