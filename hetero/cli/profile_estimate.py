"""`hetero profile estimate`: what a machine would do that nobody has measured."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetero.cli.options import KType, VType
from hetero.cli.output import AsJson, print_json, seconds_text
from hetero.cli.profile_file import save_profile
from hetero.errors import ConfigError

if TYPE_CHECKING:
    from hetero.profile.model_shape import ModelShape
    from hetero.profile.node_profile import NodeProfile


def estimate(
    preset: Annotated[str | None, typer.Argument(help="A device or server: rtx-3090 ...")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", "-M", help="A GGUF file, or `demo`.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="A model's name and quant: llama-3.1-8b-q4_k_m.")
    ] = None,
    kv_k: KType = "q8_0",
    kv_v: VType = "q8_0",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it as YAML.")] = None,
    list_presets: Annotated[bool, typer.Option("--list", help="What presets there are.")] = False,
    as_json: AsJson = False,
) -> None:
    """Estimate a machine from its preset: a profile to plan with before buying."""
    if list_presets:
        _list(as_json=as_json)
        return
    if preset is None:
        raise ConfigError("estimate: need a preset's name; `hetero profile estimate --list`")
    from hetero.profile.document import document
    from hetero.profile.estimate import estimate_profile
    from hetero.profile.presets import load_preset

    machine = load_preset(preset)
    found = estimate_profile(preset, machine, _whose(model, shape), kv_k, kv_v)
    if output is not None:
        save_profile(found, output)
    if as_json:
        print_json(document(found))
    else:
        _print(machine.title, found)


def _whose(model: str | None, shape: str | None) -> "ModelShape":
    from hetero.profile.model_sizes import model_shape, named_shape

    if (model is None) == (shape is None):
        raise ConfigError("estimate: need either --model FILE or --shape NAME")
    if model is not None:
        from hetero.cli.options import open_model
        from hetero.model.fingerprint import fingerprint_model

        path, spec = open_model(model)
        return model_shape(spec, fingerprint_model(path))
    from hetero.model.shapes import parse_shape

    assert shape is not None
    return named_shape(*parse_shape(shape))


def _list(*, as_json: bool) -> None:
    from hetero.cli.profile_tables import print_table
    from hetero.profile.node_report import Table
    from hetero.profile.presets import load_preset, preset_names

    presets = {name: load_preset(name) for name in preset_names()}
    if as_json:
        import msgspec

        print_json({name: msgspec.to_builtins(preset) for name, preset in presets.items()})
        return
    rows = [
        [name, preset.title, f"{preset.idle_watts:g}", f"{preset.load_watts:g}"]
        for name, preset in presets.items()
    ]
    print_table(Table("presets", ["", "", "idle W", "load W"], rows))


def _print(title: str, found: "NodeProfile") -> None:
    from hetero.cli.profile_tables import print_table
    from hetero.profile.node_report import Table, rate_text
    from hetero.profile.rates import rates

    rows = []
    for fit in found.fits:
        low, high = fit.interval
        for rate in rates(found, fit):
            slow, fast = rate_text(rate.tokens_per_s / high), rate_text(rate.tokens_per_s / low)
            rows.append(
                [
                    f"{fit.role}, {rate.what}, {fit.engine}",
                    seconds_text(rate.seconds),
                    f"{rate_text(rate.tokens_per_s)} tok/s",
                    f"{slow} to {fast}",
                ]
            )
    model, fit = found.model, found.fits[0]
    whose = f"{title}: {model.name}, K {fit.kv_k}, V {fit.kv_v}, estimated"
    print_table(Table(whose, ["", "takes", "", "9 of 10 within"], rows))
