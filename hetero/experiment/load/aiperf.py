"""The same metrics as NVIDIA's AIPerf exports them in profile_export_aiperf.json.

Source: github.com/ai-dynamo/aiperf, src/aiperf/common/models/export_models.py (`JsonExportData`,
`JsonMetricResult`), docs/reference/json-export-schema.md (schema 1.5: which fields a block has),
src/aiperf/metrics/types (tags and formulas; `inter_token_latency` there is our tpot,
`inter_chunk_latency` our itl). Latencies in milliseconds. Different from AIPerf: they count from
when a request was due, not from when it was sent.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hetero.experiment.load.metrics import Metrics, output_tokens, prompt_tokens
from hetero.experiment.load.record import RequestRecord
from hetero.experiment.load.steady import measured, steady_window

SCHEMA_VERSION = "1.5"
_PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
_LATENCIES = {
    "request_latency": "latency",
    "time_to_first_token": "ttft",
    "inter_token_latency": "tpot",
    "inter_chunk_latency": "itl",
}
_RATES = {
    "request_throughput": ("request_rate", "requests/sec"),
    "output_token_throughput": ("throughput", "tokens/sec"),
    "input_token_throughput": ("prompt_throughput", "tokens/sec"),
    "goodput": ("goodput", "requests/sec"),
    "benchmark_duration": ("duration", "sec"),
}


def aiperf_export(
    records: Sequence[RequestRecord],
    metrics: Metrics,
    concurrency: int | None = None,
    *,
    is_partial: bool = False,
) -> dict[str, Any]:
    """Of the requests that `metrics` are of. Blocks without a value are left out, as AIPerf
    does."""
    sent = [record for record in records if record.flow == "main"]
    main = measured(sent, steady_window(sent, concurrency) if concurrency else None)
    good = [record for record in main if record.is_ok]
    export: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "was_cancelled": is_partial}
    for tag, name in _LATENCIES.items():
        values = [1000 * value for value in metrics.samples.get(name, [])]
        _add(export, tag, "ms", values)
    speeds = [1 / record.tpot_s for record in good if record.tpot_s]
    _add(export, "output_token_throughput_per_user", "tokens/sec/user", speeds)
    seconds = [r.piece_s[1] - r.piece_s[0] for r in good if len(r.piece_s) > 1]
    _add(export, "time_to_second_token", "ms", [1000 * value for value in seconds])
    _add(export, "output_sequence_length", "tokens", [output_tokens(record) for record in good])
    _add(export, "input_sequence_length", "tokens", [prompt_tokens(record) for record in good])
    for tag, (name, unit) in _RATES.items():
        if name in metrics.scalars:
            export[tag] = {"unit": unit, "avg": metrics.scalars[name]}
    export["request_count"] = {"unit": "requests", "avg": float(len(good))}
    if len(good) < len(main):
        export["error_request_count"] = {"unit": "requests", "avg": float(len(main) - len(good))}
    export["total_isl"] = {"unit": "tokens", "avg": float(sum(map(prompt_tokens, good)))}
    export["total_osl"] = {"unit": "tokens", "avg": float(sum(map(output_tokens, good)))}
    export["error_summary"] = [
        {"error_details": {"type": kind, "message": kind}, "count": count}
        for kind, count in metrics.errors.items()
    ]
    return export


def _add(export: dict[str, Any], tag: str, unit: str, values: Sequence[float]) -> None:
    if not values:
        return
    block = {
        "unit": unit,
        "avg": float(np.mean(values)),
        "min": min(values),
        "max": max(values),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        "count": len(values),
        "sum": sum(values),
    }
    percentiles = np.percentile(values, _PERCENTILES)
    export[tag] = block | {
        f"p{number}": float(value) for number, value in zip(_PERCENTILES, percentiles, strict=True)
    }
