"""`hetero up --local`: a cluster on this machine, in the foreground until it is told to stop."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetero.cli.options import (
    Attention,
    AttentionKernel,
    Engine,
    KType,
    ModelName,
    Prefill,
    Threads,
    VType,
    check_plan,
    open_model,
)
from hetero.cli.output import AsJson, print_json, print_progress
from hetero.errors import ConfigError

if TYPE_CHECKING:
    from hetero.launch.local import LocalCluster

# What most chats need; a model that was trained for less gets its own.
_CONTEXT_TOKENS = 8192

app = typer.Typer(add_completion=False)


@app.command()
def up(
    local: Annotated[bool, typer.Option("--local", help="On this machine.")] = False,
    model: ModelName = "demo",
    host: Annotated[str, typer.Option(help="Where to listen for clients.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8080,
    prefill_nodes: Annotated[int, typer.Option(min=0, max=64)] = 1,
    decode_nodes: Annotated[int, typer.Option(min=1, max=64)] = 1,
    slots: Annotated[
        int, typer.Option(min=1, max=256, help="Sequences a decode node runs at once.")
    ] = 4,
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of one sequence.  [default: the model's, at most 8192]"),
    ] = None,
    kv_k: KType = "q8_0",
    kv_v: VType = "q8_0",
    prefill: Prefill = Engine.AUTO,
    attention: Attention = AttentionKernel.AUTO,
    threads: Threads = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Threads and caches as `hetero profile node` found them best.  "
            "[default: profiles/HOST_MODEL.yaml, if it is there]",
        ),
    ] = None,
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Also with another model's profile.")
    ] = False,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A new file for what requests are like, to replay or plan with: when, how long, "
            "which begin alike; no text. Mooncake's JSONL.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="For `hetero status` to tell clusters apart.")] = (
        "local"
    ),
    as_json: AsJson = False,
) -> None:
    """Bring a cluster up. With --json, one line on stdout says when it is ready."""
    if not local:
        raise ConfigError("up: need --local; clusters over several machines come later")
    path, spec = open_model(model)
    context_tokens = context or min(_CONTEXT_TOKENS, spec.context_length)
    check_plan(
        spec,
        kv_k=kv_k,
        kv_v=kv_v,
        prefill=prefill,
        attention=attention,
        num_decode=decode_nodes,
        slots=slots,
        context_tokens=context_tokens,
    )
    from hetero.cli.tuning import found_settings, shared_cpus
    from hetero.launch.local import LocalCluster, LocalPlan

    settings = found_settings(profile, path, spec, any_model=any_model)
    plan = LocalPlan(
        name=name,
        model=path,
        context_tokens=context_tokens,
        host=host,
        port=port,
        num_prefill=prefill_nodes,
        num_decode=decode_nodes,
        slots=slots,
        kv_k=kv_k,
        kv_v=kv_v,
        prefill=prefill.value,
        attention=attention.value,
        threads=threads,
        settings=settings,
        numa=shared_cpus(settings),
        record=record,
    )
    with LocalCluster(plan, print_progress) as cluster:
        try:
            if as_json:
                _print_state(cluster)
            else:
                _print_welcome(cluster)
            cluster.wait()
        except (KeyboardInterrupt, SystemExit):
            print_progress("stopping")


def _print_state(cluster: "LocalCluster") -> None:
    import msgspec

    state = msgspec.to_builtins(cluster.state)
    print_json(state | {"run_directory": str(cluster.run_directory)})


def _print_welcome(cluster: "LocalCluster") -> None:
    state = cluster.state
    has_prefill = any(node.role == "prefill" for node in state.nodes)
    routes = (
        "split for prompts of more than one chunk, local for shorter ones"
        if has_prefill
        else "local: the decode nodes read the prompts"
    )
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}]})
    typer.echo(f"""
URL      {state.url}
model    {state.model}
routes   {routes}
logs     {cluster.run_directory}

curl {state.url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'

Ctrl-C stops it.""")
