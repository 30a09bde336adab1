"""`hetero bench engine|kernels|wire`: this machine against ceilings measured in the same run; and
`hetero bench URL`, which is in bench_url.py."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hetero.cli import bench_url
from hetero.cli.output import AsJson, check_writable, print_json, print_progress
from hetero.near import near

_URL = "URL"


class _VerbOrUrl(TyperGroup):
    """Without a verb, a URL is meant for the load generator, and options before it, too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and any("://" in word for word in args):
            args = [_URL, *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            verbs = [name for name in self.commands if name != _URL]
            is_address = ":" in args[0]
            hint = f"; did you mean http://{args[0]}?" if is_address else near(args[0], verbs)
            raise typer.BadParameter(
                f"need a URL as http://127.0.0.1:8080 or a verb, have {args[0]!r}{hint}",
                ctx=ctx,
                param_hint="bench",
            )
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=_VerbOrUrl, help="Measure.", no_args_is_help=True)
app.command(name=_URL)(bench_url.url)

Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Also write the report to this file.")
]


@app.callback()
def bench() -> None:
    """Measure."""


@app.command()
def engine(
    output: Output = None,
    only: Annotated[
        str, typer.Option(metavar="NAME,...", help="Some figures: pack, decode, itl ...")
    ] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny models: whether it runs, not how fast.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Of each engine.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Decode, hand-over, packing, latency and memory as shares of what this machine could do."""
    # Read when numpy and llama.cpp load, which is below: packing is measured on one core, and the
    # processes that are measured share cores with each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    from hetero.experiment.engine_bench.settings import full_settings, quick_settings
    from hetero.experiment.engine_bench.suite import measure_engines

    check_writable(output)
    settings = (quick_settings if quick else full_settings)(_model_folder(), threads)
    report = measure_engines(settings, _names(only), print_progress)
    _write(output, report)
    _print(report, as_json)


@app.command()
def kernels(
    output: Output = None,
    only: Annotated[
        str, typer.Option(metavar="NAME,...", help="Some figures: attention, pack, prefill ...")
    ] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny sizes: whether it runs, not how fast.")
    ] = False,
    compile_only: Annotated[
        bool, typer.Option("--compile", help="What kernels take of each GPU; needs none.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """The GPU kernels of prefill as shares of what the GPU can do, and against torch's."""
    from importlib.util import find_spec

    from hetero.errors import ConfigError

    check_writable(output)
    for package in ("torch", "triton"):
        if find_spec(package) is None:
            raise ConfigError(
                f"bench kernels: need the {package} package, have none: pip install 'hetero[torch]'"
            )
    if compile_only:
        from hetero.experiment.kernel_bench.compile_table import compile_kernels, markdown

        report = compile_kernels(print_progress)
        _write(output, report)
        if as_json:
            print_json(report)
        else:
            typer.echo(markdown(report))
        if report["failures"]:
            raise typer.Exit(1)
        return

    from hetero.experiment.kernel_bench.device import bench_device
    from hetero.experiment.kernel_bench.settings import full_settings, quick_settings

    device = bench_device(quick=quick)
    # Last: it takes seconds, and brings all kernels.
    from hetero.experiment.kernel_bench.suite import measure_kernels

    settings = (quick_settings if quick else full_settings)(_model_folder())
    report = measure_kernels(
        settings,
        device,
        _names(only),
        print_progress,
        keep=lambda so_far: _write(output, so_far),
    )
    _print(report, as_json)


@app.command()
def wire(
    output: Output = None,
    only: Annotated[str, typer.Option(metavar="RATE,...", help="Some rates: 1gbit ...")] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="One slow link: whether it runs, not how fast.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """KV over emulated links against iperf3 on the same ones. Needs root and iperf3."""
    from hetero.experiment.wire_bench.settings import full_settings, quick_settings
    from hetero.experiment.wire_bench.suite import measure_wire

    check_writable(output)
    settings = quick_settings() if quick else full_settings()
    report = measure_wire(
        settings, _names(only), print_progress, keep=lambda so_far: _write(output, so_far)
    )
    _print(report, as_json)


@app.command()
def profile(
    output: Output = None,
    only: Annotated[str, typer.Option(metavar="MODEL,...", help="kv-heavy, 1b.")] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="A tiny model: whether it runs, not how well.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What `hetero profile node` says against what is then measured; half an hour."""
    from hetero.experiment.profile_bench.settings import full_settings, quick_settings
    from hetero.experiment.profile_bench.suite import measure_profiles

    check_writable(output)
    settings = (quick_settings if quick else full_settings)(_model_folder())
    report = measure_profiles(
        settings, _names(only), print_progress, keep=lambda so_far: _write(output, so_far)
    )
    _print(report, as_json)


def _names(only: str) -> list[str]:
    return [name.strip() for name in only.split(",") if name.strip()]


def _write(output: Path | None, report: dict[str, Any]) -> None:
    if output is not None:
        output.write_text(json.dumps(report, indent=1) + "\n")


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(report)
    else:
        for figure in report["figures"]:
            typer.echo(_line(figure))
        for failure in report["failures"]:
            typer.echo(f"{failure['name']:28} not measured: {failure['error']}")
    if report["failures"]:
        raise typer.Exit(1)


def _line(figure: dict[str, Any]) -> str:
    target, verdict = "", "stated"
    if figure["target"] is not None:
        target = f"{figure['target']['relation']} {figure['target']['bound']:g}"
        verdict = "met" if figure["met"] else "missed"
    line = f"{figure['name']:28} {figure['value']:10.4g} {figure['unit']:6} {target:8} {verdict}"
    parameters = figure["parameters"]
    if "share" not in parameters:
        return line
    details = [
        f"{1000 * figure['arms']['ours_s']['median']:.3g} ms",
        f"{parameters['rate']:.4g} {parameters['rate_unit']}",
        f"{parameters['share']:.2f} of {parameters['share_of']}",
    ]
    peers = parameters["times_faster_than"]
    details += [f"{ratio:.2f} x {name}" for name, ratio in peers.items()]
    return f"{line:65} {', '.join(details)}"


def _model_folder() -> Path:
    from hetero.experiment.models import cache_folder

    return cache_folder()
