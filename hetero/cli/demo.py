"""`hetero demo`: one process reads a long prompt, another generates, and the tokens are right.

The embedded model was trained to do one thing: recall a value from its key. The answer exists only
in the KV cache, so if a bit of it went wrong on the wire, the answer would too.
"""

import os
from typing import TYPE_CHECKING, Any

import typer

from hetero.cli.output import AsJson, print_json, print_progress, size_text

if TYPE_CHECKING:
    from hetero.launch.local import LocalPlan
    from hetero.launch.router_client import Completion
    from hetero.model.demo import RecallTask

_NUM_PAIRS = 512
_SEED = 1
# An answer is a key of two words and a value.
_MAX_TOKENS = 16

app = typer.Typer(add_completion=False)


@app.command()
def demo(as_json: AsJson = False) -> None:
    """Send one long prompt through two processes, and check what comes out."""
    from hetero.cli.llama_alone import greedy_tokens
    from hetero.cli.prompt import prompt_tokens
    from hetero.cli.report import contract_fields
    from hetero.launch.cores import num_usable_cores
    from hetero.launch.local import LocalCluster, LocalPlan
    from hetero.launch.router_client import complete
    from hetero.model.demo import DEMO_MODEL_PATH, recall_prompt
    from hetero.serve.config import DEFAULT_CHUNK_TOKENS

    task = recall_prompt(_NUM_PAIRS, _SEED)
    prompt = prompt_tokens(DEMO_MODEL_PATH, task.content, chat=True)
    plan = LocalPlan(
        name=f"demo-{os.getpid()}",
        temporary=True,
        model=DEMO_MODEL_PATH,
        context_tokens=len(prompt) + _MAX_TOKENS,
        slots=1,
        threads=num_usable_cores(),
    )
    body = {
        "messages": [{"role": "user", "content": task.content}],
        "max_tokens": _MAX_TOKENS,
        "temperature": 0,
        "route": "split",
    }
    with LocalCluster(plan, print_progress) as cluster:
        nodes = {node.name: node.pid for node in cluster.state.nodes}
        completion = complete(cluster.url, "chat/completions", body, lambda _: None)
    print_progress("the same prompt through llama.cpp alone")
    reference = greedy_tokens(
        DEMO_MODEL_PATH,
        prompt,
        max_tokens=_MAX_TOKENS,
        kv_k=plan.kv_k,
        kv_v=plan.kv_v,
        chunk_tokens=DEFAULT_CHUNK_TOKENS,
        num_threads=num_usable_cores(),
    )
    match = completion.tokens == reference and completion.text.strip() == task.answer
    if as_json:
        print_json(
            contract_fields(completion, plan) | {"reference_tokens": reference, "match": match}
        )
    else:
        _tell(completion, plan, task, nodes, reference)
    if not match:
        raise typer.Exit(1)


def _tell(
    completion: "Completion",
    plan: "LocalPlan",
    task: "RecallTask",
    nodes: dict[str, int],
    reference: list[int],
) -> None:
    from rich.console import Console

    from hetero.cli.report import stage_lines

    out = Console(highlight=False, soft_wrap=True)
    timings = completion.timings
    prefill, decode = completion.route["prefill_node"], completion.route["decode_node"]
    out.print(f"\nA list of {_NUM_PAIRS} pairs, and then the question: [bold]{task.key} ?[/bold]\n")
    lines: list[tuple[str, Any]] = [
        (prefill, f"process {nodes[prefill]} read {completion.num_prompt_tokens} tokens with "
         f"{timings['prefill_engine']} and drew the first token"),
        ("wire", f"{size_text(timings['kv_bytes'])} of KV cache ({plan.kv_k} keys, {plan.kv_v} "
         f"values) in {timings['num_chunks']} chunks, over TCP"),
        (decode, f"process {nodes[decode]} restored it and generated the other "
         f"{len(completion.tokens) - 1} tokens"),
    ]  # fmt: skip
    for who, what in lines:
        out.print(f"  [cyan]{who:<10}[/cyan] {what}")
    out.print()
    for duration, stage in stage_lines(completion):
        out.print(f"  {duration:>10}  {stage}")
    out.print(f"\n  answer     [bold]{completion.text.strip()}[/bold]")
    _verdict(out, "right", completion.text.strip() == task.answer, f"need {task.answer}")
    is_same = completion.tokens == reference
    _verdict(out, "the tokens of llama.cpp alone", is_same, f"need {reference}")


def _verdict(out: Any, what: str, holds: bool, need: str) -> None:
    mark = "[green]yes[/green]" if holds else f"[red]NO[/red]: {need}"
    out.print(f"  {what}: {mark}")
