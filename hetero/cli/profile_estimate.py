"""`hetero profile estimate`: what a machine would do that nobody has measured."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetero.cli.options import KType, VType
from hetero.cli.output import AsJson, print_json, seconds_text
from hetero.errors import ConfigError

if TYPE_CHECKING:
    from hetero.profile.model_shape import ModelShape
    from hetero.profile.node_profile import EngineFit, NodeProfile

_PROMPTS = (512, 2048, 8192)
_BATCHES = (1, 4, 16)
_CONTEXT = 4096


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
    from hetero.profile.document import document, write_profile
    from hetero.profile.estimate import estimate_profile
    from hetero.profile.presets import load_preset

    machine = load_preset(preset)
    found = estimate_profile(preset, machine, _whose(model, shape), kv_k, kv_v)
    if output is not None:
        write_profile(found, output)
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
    from hetero.profile.presets import load_preset, preset_names

    presets = {name: load_preset(name) for name in preset_names()}
    if as_json:
        import msgspec

        print_json({name: msgspec.to_builtins(preset) for name, preset in presets.items()})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for head in ("preset", "", "idle W", "load W"):
        table.add_column(head, no_wrap=True)
    for name, preset in presets.items():
        table.add_row(name, preset.title, f"{preset.idle_watts:g}", f"{preset.load_watts:g}")
    Console(soft_wrap=True, width=120).print(table)


def _print(title: str, found: "NodeProfile") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    prefill, decode = found.fits
    whose = f"{title}: {found.model.name}, K {prefill.kv_k}, V {prefill.kv_v}, estimated"
    table = Table(box=None, title=Text(whose), title_justify="left")
    for head in ("", "estimate", "9 of 10 within"):
        table.add_column(head, no_wrap=True)
    for tokens in _PROMPTS:
        seconds = prefill.prefill_s(tokens)
        low, high = prefill.interval
        table.add_row(
            f"prefill of {tokens} tokens, {prefill.engine}",
            seconds_text(seconds),
            f"{seconds_text(low * seconds)} to {seconds_text(high * seconds)}",
        )
    for batch in _BATCHES:
        rate, slow, fast = _decode_rates(decode, batch)
        table.add_row(
            f"decode, batch of {batch} at {_CONTEXT} tokens",
            f"{_rate_text(rate)} tok/s",
            f"{_rate_text(slow)} to {_rate_text(fast)}",
        )
    Console(soft_wrap=True, width=120).print(table)


def _decode_rates(decode: "EngineFit", batch: int) -> tuple[float, float, float]:
    """Tokens per second of all sequences: the estimate, and its interval's ends."""
    rate = batch / decode.step_s([_CONTEXT] * batch)
    low, high = decode.interval
    return rate, rate / high, rate / low


def _rate_text(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.2g}"
