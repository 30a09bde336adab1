"""`hetero bench URL`: load on any OpenAI-compatible endpoint, ours or another's."""

import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hetero.cli.output import INTERRUPTED, AsJson, check_writable, print_json, print_progress

if TYPE_CHECKING:
    from hetero.experiment.load.sweep import Point, SweepSettings


def url(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="As http://127.0.0.1:8080, with or without /v1.")
    ],
    workload: Annotated[
        str,
        typer.Option(
            "--workload",
            "-w",
            help="chat, document, code or agent; the file of a recorded trace; or lengths by hand: "
            "docs/workloads.md.",
        ),
    ] = "prompt=512,output=128",
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Closed loop: sessions at once.  [default: 1,2,4,8; a recorded trace: none, it "
            "runs at its own times]",
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(metavar="R,...", help="Open loop: sessions a second."),
    ] = None,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Of each line; a few for each concurrent one, else.")
    ] = None,
    duration: Annotated[
        float | None, typer.Option(min=0.1, metavar="S", help="Repeat the workload for S seconds.")
    ] = None,
    prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Not the workload's.")] = None,
    output_tokens: Annotated[int | None, typer.Option(min=1, help="Not the workload's.")] = None,
    context: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens of one sequence: longer ones are cut or left out."),
    ] = None,
    slo: Annotated[
        str, typer.Option(metavar="BOUND,...", help="As ttft_p95:2s,tpot_p95:100ms.")
    ] = "",
    route: Annotated[
        str | None, typer.Option(metavar="auto|local|split", help="Of a hetero router.")
    ] = None,
    endpoint: Annotated[
        str, typer.Option(metavar="auto|completions|chat", help="Which of the two to ask.")
    ] = "auto",
    model: Annotated[str | None, typer.Option(help="Where the server has several.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="Of the answers.")] = 0.0,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Of the workload and its tokens.  [default: sizes and times of seed 0; tokens "
            "that no earlier run has left in the server's caches]",
            show_default=False,
        ),
    ] = None,
    cost_per_hour: Annotated[
        float | None, typer.Option(min=0.0, help="Price of the machines, in any currency.")
    ] = None,
    watts: Annotated[float | None, typer.Option(min=0.0, help="Power of the machines.")] = None,
    kwh_price: Annotated[float | None, typer.Option(min=0.0, help="Price of a kWh.")] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Requests before each line.")] = 2,
    timeout: Annotated[float, typer.Option(min=0.001, metavar="S", help="Of a request.")] = 600,
    requests_file: Annotated[
        Path | None, typer.Option(metavar="F", help="Write a JSON line for each request.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="F", help="Write the report, too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Load on an OpenAI-compatible endpoint: latencies, throughput, goodput and errors.

    The API key is taken from HETERO_API_KEY or OPENAI_API_KEY.
    """
    from hetero.errors import HeteroError
    from hetero.experiment.load.cost import price_per_hour
    from hetero.experiment.load.endpoint import parse_url
    from hetero.experiment.load.slo import parse_slo
    from hetero.experiment.load.sweep import SweepSettings, sweep

    settings = SweepSettings(
        url=url,
        workload=workload,
        concurrencies=tuple(int(number) for number in _numbers("--concurrency", concurrency, int)),
        rates=tuple(_numbers("--rate", rate, float)),
        requests=requests,
        duration_s=duration,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        context_tokens=context,
        warmup=warmup,
        seed=seed or 0,
        token_seed=_new_token_seed() if seed is None else seed,
        model=model,
        endpoint=_one_of("--endpoint", endpoint, ("auto", "completions", "chat")),
        route=_one_of("--route", route, ("auto", "local", "split")),
        temperature=temperature,
        timeout_s=timeout,
        slo=slo,
        per_hour=price_per_hour(per_hour=cost_per_hour, watts=watts, per_kwh=kwh_price),
    )
    parse_url(url)
    parse_slo(slo)
    for path in (output, requests_file):
        check_writable(path)
    points: list[Point] = []
    for point in sweep(settings, print_progress):
        points.append(point)
        if requests_file is not None:
            _write_records(requests_file, point, is_first=len(points) == 1)
        if output is not None:
            output.write_text(json.dumps(_report(settings, points), indent=1) + "\n")
    if as_json:
        print_json(_report(settings, points))
    else:
        from hetero.cli.bench_url_table import print_points

        print_points(settings, points)
    if any(point.outcome.is_partial for point in points):
        raise typer.Exit(INTERRUPTED)
    if not any(record.is_ok for point in points for record in point.outcome.records):
        raise HeteroError(f"{url}: need an answer, have {_first_error(points)}")


def _numbers(option: str, text: str | None, kind: type[int] | type[float]) -> list[float]:
    from hetero.errors import ConfigError

    try:
        numbers: list[float] = [kind(part) for part in text.split(",")] if text else []
    except ValueError:
        numbers = [0]
    if any(not 0 < number < float("inf") for number in numbers):
        what = "whole numbers" if kind is int else "numbers"
        raise ConfigError(f"{option}: need {what} above 0, as 1,2,4, have {text!r}")
    return numbers


def _one_of(option: str, word: str | None, known: tuple[str, ...]) -> Any:
    from hetero.errors import ConfigError

    if word is not None and word not in known:
        raise ConfigError(f"{option}: need {', '.join(known)}, have {word!r}")
    return word


def _new_token_seed() -> int:
    return secrets.randbelow(2**31)


def _write_records(path: Path, point: "Point", *, is_first: bool) -> None:
    """The first point's take the place of what the file held."""
    import msgspec

    at = {"concurrency": point.concurrency, "rate": point.rate}
    with path.open("w" if is_first else "a") as file:
        for record in point.outcome.records:
            file.write(json.dumps(at | msgspec.to_builtins(record)) + "\n")


def _report(settings: "SweepSettings", points: "list[Point]") -> dict[str, Any]:
    import msgspec

    from hetero import __version__
    from hetero.experiment.load.sweep import best_point

    best = best_point(points)
    return {
        "benchmark": "URL",
        "version": __version__,
        "settings": msgspec.to_builtins(settings),
        "points": [point.to_json() for point in points],
        "best": best and {"concurrency": best.concurrency, "rate": best.rate},
        "partial": any(point.outcome.is_partial for point in points),
    }


def _first_error(points: "list[Point]") -> str:
    for point in points:
        for record in point.outcome.records:
            if record.error is not None:
                return f"{record.error.kind}: {record.error.says}"
    return "nothing to send"
