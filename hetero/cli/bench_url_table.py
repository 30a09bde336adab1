"""What `hetero bench URL` found, as a table on a terminal: a line a concurrency or rate."""

from typing import TYPE_CHECKING

from hetero.cli.output import seconds_text

if TYPE_CHECKING:
    from hetero.experiment.load.sweep import Point, SweepSettings

_COLUMNS = {
    "TTFT p50": "ttft_p50",
    "p95": "ttft_p95",
    "TPOT p50": "tpot_p50",
    "p95 ": "tpot_p95",
    "ITL p99": "itl_p99",
}


def print_points(settings: "SweepSettings", points: "list[Point]") -> None:
    from hetero.cli.profile_tables import print_table
    from hetero.experiment.load.sweep import best_point
    from hetero.profile.node_report import Table

    if not points:
        return
    first = points[0].outcome
    is_open = points[0].rate is not None
    heads = ["sessions/s" if is_open else "concurrency", "requests", *_COLUMNS]
    heads += ["tokens/s", "requests/s", "goodput", "errors", "generator"]
    print_table(
        Table(
            f"{_load(settings)} on {settings.url} ({first.server}, {first.model}), "
            f"prompts as {first.prompt_kind}",
            heads,
            [_row(point) for point in points],
        )
    )
    print()
    for point in points:
        for line in _notes(point):
            print(f"{point.name}: {line}")
    for line in _errors(points):
        print(line)
    best = best_point(points)
    if settings.slo:
        unit = "sessions/s" if is_open else "concurrency"
        if best is None:
            what = "met by none of these"
        elif best.is_as_recorded:
            what = "met"
        else:
            what = f"met; best goodput at {unit} {best.name}"
        print(f"{settings.slo}: {what}")


def _errors(points: "list[Point]") -> list[str]:
    """One of each kind."""
    first: dict[str, str] = {}
    for record in (record for point in points for record in point.outcome.records):
        if (error := record.error) is None:
            continue
        kind = error.kind if error.status is None else f"{error.kind} {error.status}"
        is_too_long = error.status == 400 and "context" in error.says.lower()
        hint = "; --context N cuts or leaves out what is longer" if is_too_long else ""
        first.setdefault(kind, f"{kind}: {error.says}{hint}")
    return list(first.values())


def _load(settings: "SweepSettings") -> str:
    instead = [("prompt", settings.prompt_tokens), ("output", settings.output_tokens)]
    changed = [f"{name} {tokens}" for name, tokens in instead if tokens is not None]
    return settings.workload + (f" with {', '.join(changed)} tokens" if changed else "")


def _row(point: "Point") -> list[str]:
    outcome = point.outcome
    errors = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.metrics.errors.items()))
    main = [record for record in outcome.records if record.flow == "main"]
    times = [point.value(name) for name in _COLUMNS.values()]
    rates = [point.value(name) for name in ("throughput", "request_rate", "goodput")]
    return [
        point.name,
        str(len(main)),
        *("" if value is None else seconds_text(value) for value in times),
        *("" if value is None else f"{value:.4g}" for value in rates),
        errors or "none",
        f"{100 * outcome.share.cores:.1f}% of a core",
    ]


def _notes(point: "Point") -> list[str]:
    outcome, lengths = point.outcome, point.outcome.prompt_lengths
    notes = []
    if lengths.exact < lengths.counted:
        notes.append(
            f"{lengths.exact} of {lengths.counted} prompts had exactly the length asked for, by "
            f"the server's count; the worst was {lengths.worst} tokens off"
        )
    if told := point.value("server_ttft_p50"):
        notes.append(f"the server's own clock has a TTFT p50 of {seconds_text(told)}")
    if point.num_clipped or point.num_dropped:
        notes.append(
            f"{point.num_clipped} prompts cut and {point.num_dropped} requests left out to fit"
        )
    if outcome.share.late_p95_s > 0.001:
        notes.append(
            f"the generator sent late: p95 {seconds_text(outcome.share.late_p95_s)}, which the "
            "latencies include"
        )
    if not outcome.is_length_fixed:
        notes.append("this server ends answers as it likes: their lengths are not what was asked")
    if cost := point.cost:
        each = [("input", cost.per_input_token), ("output", cost.per_output_token)]
        prices = [
            f"{1e6 * price:.4g} a million {name}" for name, price in each if price is not None
        ]
        notes.append(f"{', '.join(prices)} tokens, divided by {cost.divided_by}")
    if outcome.is_partial:
        notes.append("interrupted: what was finished by then")
    return notes
