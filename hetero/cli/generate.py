"""`hetero generate`: one prompt through a cluster that lives as long as the answer takes."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    Wish,
    check_plan,
    open_model,
)
from hetero.cli.output import AsJson, print_json, print_progress
from hetero.errors import ConfigError

if TYPE_CHECKING:
    from hetero.launch.router_client import Endpoint

app = typer.Typer(add_completion=False)


@app.command()
def generate(
    model: ModelName,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p")] = None,
    file: Annotated[
        str | None, typer.Option("--file", "-f", help="The prompt's file; `-` reads stdin.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--num", "-n", min=1, help="At most.")] = 128,
    chat: Annotated[bool, typer.Option("--chat", help="As a user's message in a chat.")] = False,
    route: Annotated[Wish, typer.Option(help="Where the prompt is read.")] = Wish.AUTO,
    prefill: Prefill = Engine.AUTO,
    attention: Attention = AttentionKernel.AUTO,
    kv_k: KType = "q8_0",
    kv_v: VType = "q8_0",
    chunk: Annotated[
        int | None,
        typer.Option(
            min=1, help="Prompt tokens read at a time.  [default: 512; torch on a GPU: measured]"
        ),
    ] = None,
    temperature: Annotated[float, typer.Option("--temp", min=0, max=2, help="0: greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """One prompt through local processes: a router, a prefill node and a decode node."""
    text = _prompt_text(prompt, file)
    path, spec = open_model(model)
    from hetero.cli.prompt import prompt_tokens

    num_tokens = len(prompt_tokens(path, text, chat=chat))
    if num_tokens + max_tokens > spec.context_length:
        raise ConfigError(
            f"prompt: need a context of {num_tokens} + {max_tokens} tokens, the model was trained "
            f"for {spec.context_length}; shorten the prompt, or lower -n"
        )
    check_plan(
        spec,
        kv_k=kv_k,
        kv_v=kv_v,
        prefill=prefill,
        attention=attention,
        num_decode=1,
        slots=1,
        context_tokens=num_tokens + max_tokens,
    )
    from hetero.cli.report import contract_fields, summary_line
    from hetero.launch.cores import num_usable_cores
    from hetero.launch.local import LocalCluster, LocalPlan
    from hetero.launch.router_client import complete

    plan = LocalPlan(
        name=f"generate-{os.getpid()}",
        temporary=True,
        model=path,
        context_tokens=num_tokens + max_tokens,
        slots=1,
        kv_k=kv_k,
        kv_v=kv_v,
        prefill=prefill.value,
        attention=attention.value,
        chunk_tokens=chunk,
        # With one request, the nodes work one after the other: each may have all the cores.
        threads=threads or num_usable_cores(),
    )
    endpoint: Endpoint = "chat/completions" if chat else "completions"
    body: dict[str, Any] = (
        {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    )
    body |= {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "route": route.value,
    }
    with LocalCluster(plan, print_progress) as cluster:
        completion = complete(cluster.url, endpoint, body, _ignore if as_json else _print_piece)
    if as_json:
        print_json(contract_fields(completion, plan))
    else:
        print(flush=True)
        print_progress(summary_line(completion))


def _prompt_text(prompt: str | None, file: str | None) -> str:
    if (prompt is None) == (file is None):
        raise ConfigError("prompt: need one of -p TEXT and -f FILE")
    if prompt is not None:
        return prompt
    try:
        return sys.stdin.read() if file == "-" else Path(file or "").read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: can't read the prompt: {error}") from None


def _print_piece(text: str) -> None:
    print(text, end="", flush=True)


def _ignore(_text: str) -> None:
    pass
