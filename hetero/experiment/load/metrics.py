"""Records to metrics: scalars of a load as a whole, and samples of which percentiles are taken.

Names are those of recipes and SLOs; seconds, bytes, and their quotients. Latencies count from when
a request was due. What failed gives no samples; that it did is `error_share`.
"""

from collections import Counter
from collections.abc import Sequence

import msgspec

from hetero.experiment.load.record import RequestRecord
from hetero.experiment.load.slo import LATENCIES, Bound, are_met, meets, values_of
from hetero.experiment.load.steady import Window, measured, steady_window

# hetero's timings, and llama-server's in milliseconds.
_STAGES = {
    "tokenize_s": "tokenize",
    "prefill_s": "prefill",
    "ttft_s": "server_ttft",
    "tpot_s": "server_tpot",
}
# Of answers whose cache went over the wire; elsewhere they are 0 because they did not happen.
_WIRE_STAGES = {
    "pack_s": "pack",
    "wire_s": "wire",
    "restore_s": "restore",
    "exposed_s": "exposed",
    "last_group_s": "last_group",
    "kv_bytes": "kv_bytes",
}
_LLAMA_STAGES = {"prompt_ms": "prefill", "predicted_per_token_ms": "server_tpot"}


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """per_request: of `itl`, how many samples each request gave, in the order of the samples."""

    scalars: dict[str, float]
    samples: dict[str, list[float]]
    per_request: dict[str, list[int]]
    errors: dict[str, int]  # by kind


class PromptLengths(msgspec.Struct, frozen=True, kw_only=True):
    """By the server's own count. worst: the largest difference from what was asked for."""

    counted: int
    exact: int
    worst: int


def measure(
    records: Sequence[RequestRecord],
    bounds: Sequence[Bound] = (),
    concurrency: int | None = None,
) -> Metrics:
    """Of the main load; with `beside.` before a name of what was due beside it meanwhile.

    concurrency: of a closed loop, of which the steady part is measured where there is one; the
    share of errors is of all.
    """
    main = [record for record in records if record.flow == "main"]
    window = steady_window(main, concurrency) if concurrency else None
    found = _measure(main, bounds, window)
    if main:
        first_s, last_s = _span(main) if window is None else (window.begin_s, window.end_s)
        beside = [
            record
            for record in records
            if record.flow != "main" and first_s <= record.due_s <= last_s
        ]
        if beside:
            other = _measure(beside, (), None)
            found.scalars.update({f"beside.{name}": v for name, v in other.scalars.items()})
            found.samples.update({f"beside.{name}": v for name, v in other.samples.items()})
            found.per_request.update({f"beside.{k}": v for k, v in other.per_request.items()})
    return found


def prompt_lengths(records: Sequence[RequestRecord]) -> PromptLengths:
    differences = [
        abs(record.counted_prompt_tokens - record.prompt_tokens)
        for record in records
        if record.counted_prompt_tokens is not None
    ]
    return PromptLengths(
        counted=len(differences),
        exact=differences.count(0),
        worst=max(differences, default=0),
    )


def _measure(sent: list[RequestRecord], bounds: Sequence[Bound], window: Window | None) -> Metrics:
    records = measured(sent, window)
    good = [record for record in records if record.is_ok]
    samples = {
        metric: [value for record in good for value in values_of(record, metric)]
        for metric in LATENCIES
    }
    # Of failed ones, too: it is the generator's.
    samples["late"] = [record.late_s for record in records]
    for record in good:
        for name, value in stages_of(record).items():
            samples.setdefault(name, []).append(value)
    errors = Counter(str(record.error.kind) for record in sent if record.error is not None)
    scalars = {"requests": float(len(records))}
    if records:
        scalars["error_share"] = errors.total() / len(sent)
        if window is None:
            first_s, last_s = _span(records)
            scalars |= _rates(good, bounds, last_s - first_s)
        else:
            scalars |= _steady_rates(sent, bounds, window)
        if bounds:
            scalars["slo_met"] = float(are_met(records, bounds))
    samples = {name: values for name, values in samples.items() if values}
    gaps = [len(values_of(record, "itl")) for record in good]
    return Metrics(
        scalars=scalars,
        samples=samples,
        per_request={"itl": gaps} if "itl" in samples else {},
        errors=dict(errors),
    )


def _rates(good: list[RequestRecord], bounds: Sequence[Bound], seconds: float) -> dict[str, float]:
    """Per second of the span from the first request's due time to the last one's end."""
    found = {"duration": seconds}
    if seconds <= 0:
        return found
    found["throughput"] = sum(map(output_tokens, good)) / seconds
    found["prompt_throughput"] = sum(map(prompt_tokens, good)) / seconds
    found["request_rate"] = len(good) / seconds
    if bounds:
        found["goodput"] = sum(meets(record, bounds) for record in good) / seconds
    return found


def _steady_rates(
    sent: list[RequestRecord], bounds: Sequence[Bound], window: Window
) -> dict[str, float]:
    """Per second, of what came within the window: tokens, first tokens, and ends of answers."""
    good = [record for record in sent if record.is_ok]
    ended = [record for record in good if window.holds(record.ended_s)]
    read = [record for record in good if record.piece_s and window.holds(record.piece_s[0])]
    tokens = sum(
        num
        for record in good
        for at_s, num in zip(record.piece_s, record.piece_tokens, strict=True)
        if window.holds(at_s)
    )
    found = {
        "duration": window.seconds,
        "throughput": tokens / window.seconds,
        "prompt_throughput": sum(map(prompt_tokens, read)) / window.seconds,
        "request_rate": len(ended) / window.seconds,
    }
    if bounds:
        found["goodput"] = sum(meets(record, bounds) for record in ended) / window.seconds
    return found


def output_tokens(record: RequestRecord) -> int:
    counted = record.counted_output_tokens
    return sum(record.piece_tokens) if counted is None else counted


def prompt_tokens(record: RequestRecord) -> int:
    counted = record.counted_prompt_tokens
    return record.prompt_tokens if counted is None else counted


def stages_of(record: RequestRecord) -> dict[str, float]:
    """What the server told of one request, by this project's names."""
    told = record.stages
    names = _STAGES | (_WIRE_STAGES if record.route.get("kind") == "split" else {})
    found = {name: float(told[key]) for key, name in names.items() if _is_number(told.get(key))}
    for key, name in _LLAMA_STAGES.items():
        if _is_number(told.get(key)):
            found[name] = told[key] / 1000
    return found


def _span(records: Sequence[RequestRecord]) -> tuple[float, float]:
    first_s = min(record.due_s for record in records)
    return first_s, max((r.ended_s for r in records if r.ended_s is not None), default=first_s)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
