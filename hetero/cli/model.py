"""`hetero model info | synth | pull`: what a model is, a random one, one from the hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hetero.cli.output import byte_bar

if TYPE_CHECKING:
    from hetero.model.spec import ModelSpec

app = typer.Typer(help="Look at, make and fetch model files.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="A GGUF file (the first part), or `demo`.")],
    fingerprint: Annotated[
        bool, typer.Option("--fingerprint", help="Also hash it, as nodes do before they pair.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What a model is, and what its KV cache costs."""
    from dataclasses import asdict

    from hetero.model.gguf_file import GGUFFile
    from hetero.model.spec import gguf_to_spec

    file = GGUFFile.open(model_path(model))
    spec = gguf_to_spec(file)
    facts: dict[str, Any] = {
        "path": str(file.parts[0]),
        "parts": len(file.parts),
        **asdict(spec),
        "kv_bytes_per_token": _kv_bytes_per_token(spec),
    }
    if fingerprint:
        import msgspec

        from hetero.model.fingerprint import fingerprint_model

        facts["fingerprint"] = msgspec.structs.asdict(fingerprint_model(file.parts[0]))
    if as_json:
        _print_json(facts)
    else:
        _print_info(spec, facts)


@app.command()
def synth(
    shape: Annotated[
        str, typer.Option("--shape", help="A model's name and quant: llama-3.1-8b-q4_k_m.")
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other weights.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Random weights in the shape of a real model: for timing, not for text."""
    from hetero.model.synth import synthesize

    with byte_bar(f"writing {out.name}") as progress:
        path = synthesize(shape, out, seed=seed, force=force, progress=progress)
    _print_path(path, as_json=as_json)


@app.command()
def pull(
    repo: Annotated[str, typer.Argument(help="ORG/REPO or ORG/REPO:QUANT.")],
    as_json: AsJson = False,
) -> None:
    """Download a GGUF from the Hugging Face hub; an interrupted download goes on."""
    from hetero.model.pull import pull as pull_model

    with byte_bar(f"pulling {repo}") as progress:
        path = pull_model(repo, progress=progress)
    _print_path(path, as_json=as_json)


def model_path(name: str) -> Path:
    """The file that -M names: a path, or `demo` for the embedded model (`./demo` is a file)."""
    if name == "demo":
        from hetero.model.demo import DEMO_MODEL_PATH

        return DEMO_MODEL_PATH
    return Path(name)


def _kv_bytes_per_token(spec: "ModelSpec") -> dict[str, int | None]:
    """For K and V of each type; None where llama.cpp can't cut a head into the type's blocks."""
    from hetero.errors import ModelError
    from hetero.kv.layout import model_layout
    from hetero.kv.types import KV_TYPES

    costs: dict[str, int | None] = {}
    for name in KV_TYPES:
        try:
            layout = model_layout(spec, name, name)
        except ModelError:
            costs[name] = None
        else:
            costs[name] = layout.token_bytes
    return costs


def _print_info(spec: "ModelSpec", facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rope = spec.rope
    scaling = "" if rope.scaling == "none" else f", {rope.scaling} x{rope.factor:g}"
    factors = ", with frequency factors" if rope.has_factors else ""
    window = f", window {spec.sliding_window}" if spec.sliding_window else ""
    biases = ", ".join(
        word
        for word, there in [
            ("QKV biases", spec.qkv_bias),
            ("Q/K norms", spec.qk_norm),
            ("tied embeddings", spec.tied_embeddings),
        ]
        if there
    )
    # As Text: a name may hold what rich takes for markup.
    table = Table(show_header=False, box=None, title=Text(spec.name), title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    rows = {
        "architecture": spec.architecture,
        "parameters": f"{_count(spec.num_parameters)}, {spec.quantization}",
        "file": f"{_size(spec.file_bytes)} in {facts['parts']} part(s), {facts['path']}",
        "layers": f"{spec.num_layers} of width {spec.hidden_size}, FFN {spec.ffn_size}",
        "attention": f"{spec.num_heads} heads, {spec.num_kv_heads} KV heads of "
        f"{spec.head_dim_k}{window}",
        "experts": f"{spec.num_experts_used} of {spec.num_experts}" if spec.num_experts else "",
        "also": biases,
        "RoPE": f"{rope.kind}, base {rope.base:,.0f}{scaling}{factors}",
        "context": f"{spec.context_length} tokens, vocabulary {spec.vocab_size}",
        **{f"fingerprint {name}": value for name, value in facts.get("fingerprint", {}).items()},
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, Text(value))
    costs = Table("K and V type", "KV bytes per token", "at 8k tokens", box=None)
    for column in costs.columns[1:]:
        column.justify = "right"
    for name, token_bytes in facts["kv_bytes_per_token"].items():
        if token_bytes is None:
            costs.add_row(name, f"not with heads of {spec.head_dim_k}", "")
        else:
            costs.add_row(name, f"{token_bytes:,}", _size(8192 * token_bytes))
    console = Console()
    console.print(table)
    console.print(costs)


def _print_path(path: Path, *, as_json: bool) -> None:
    if not as_json:
        typer.echo(path)
        return
    from hetero.model.gguf_file import GGUFFile

    parts = GGUFFile.open(path).parts
    _print_json(
        {
            "path": str(path),
            "parts": len(parts),
            "file_bytes": sum(part.stat().st_size for part in parts),
        }
    )


def _print_json(facts: dict[str, Any]) -> None:
    import json

    typer.echo(json.dumps(facts))


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"


def _size(num_bytes: int) -> str:
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.3g} {unit}" if unit != "B" else f"{num_bytes} B"
        value /= 1024
    return f"{value:.2f} GiB"
