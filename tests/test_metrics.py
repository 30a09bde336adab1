"""Metrics by name: one grammar, and words for axes."""

import pytest

from hetero.errors import ConfigError
from hetero.experiment.recipe.metrics import METRICS, parse_metric


@pytest.mark.parametrize(
    ("name", "base", "statistic", "share", "label"),
    [
        ("ttft_p95", "ttft", "p95", 0.95, "time to first token p95 (s)"),
        ("itl_p99.9", "itl", "p99.9", 0.999, "gap between two pieces p99.9 (s)"),
        ("late_max", "late", "max", None, "lateness of the load generator max (s)"),
        ("kv_bytes_mean", "kv_bytes", "mean", None, "cache moved mean (B)"),
        (
            "server_ttft_p50",
            "server_ttft",
            "p50",
            0.5,
            "time to first token, by the server p50 (s)",
        ),
        ("throughput", "throughput", None, None, "output throughput (tokens/s)"),
        ("error_share", "error_share", None, None, "share of requests that failed"),
        ("front-1_cores", "front-1_cores", None, None, "processor time of a node (cores)"),
    ],
)
def test_a_metrics_name_is_taken_apart(name, base, statistic, share, label):
    found = parse_metric("serving", name)
    assert (found.base, found.statistic, found.share) == (base, statistic, share)
    assert (found.key, found.axis_label) == (base, label)


def test_of_the_load_beside():
    found = parse_metric("serving", "beside.ttft_p50")
    assert (found.beside, found.base, found.key) == (True, "ttft", "beside.ttft")
    assert found.axis_label == "time to first token p50 of the load beside (s)"


@pytest.mark.parametrize(
    ("kind", "name", "complaint"),
    [
        ("serving", "throughput_p95", "throughput is one number of a whole run: leave _p95 out"),
        ("serving", "ttft_p0", "need a percentile above 0 and below 100"),
        ("serving", "ttft_p100", "no such metric of serving"),
        ("serving", "beside.router_cores", "processor time is of a process, not of one load"),
        ("kv-wire", "front_cores", "no such metric of kv-wire; did you mean sink_cores or s"),
        ("kv-wire", "beside.restore_p50", "need a load beside for that, have a kv-wire recipe"),
        ("serving", "cost_per_input_token", "no such metric of serving"),
        ("kv-quality", "qqq", "no such metric of kv-quality; docs/recipes.md lists them"),
    ],
)
def test_a_metric_that_there_is_not_is_refused(kind, name, complaint):
    with pytest.raises(ConfigError) as error:
        parse_metric(kind, name)
    assert str(error.value).startswith(f"{name}: {complaint}")


def test_every_metric_can_be_named():
    for kind, metrics in METRICS.items():
        for name, metric in metrics.items():
            found = parse_metric(kind, f"{name}_p50" if metric.sampled else name)
            assert found.metric is metric
