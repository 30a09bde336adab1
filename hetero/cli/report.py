"""One completion as the contract's JSON object, and its stages for people to read."""

from typing import TYPE_CHECKING, Any

from hetero.cli.output import seconds_text, size_text

if TYPE_CHECKING:
    from hetero.launch.local import LocalPlan
    from hetero.launch.router_client import Completion

_STAGES = {
    "tokenize_s": "split the text into tokens",
    "prefill_s": "read the prompt",
    "pack_s": "packed its KV cache, layer by layer meanwhile",
    "wire_s": "had KV on the wire, most of it meanwhile",
    "restore_s": "restored it in the decode node",
    "exposed_s": "from the first token to the sequence in the decode batch",
    "ttft_s": "until the first token",
    "tpot_s": "for each further token",
}


def contract_fields(completion: "Completion", plan: "LocalPlan") -> dict[str, Any]:
    timings = completion.timings
    return {
        "prompt_tokens": completion.num_prompt_tokens,
        "tokens": completion.tokens,
        "text": completion.text,
        "route": completion.route["kind"],
        "prefill_engine": timings.get("prefill_engine"),
        "attention": timings.get("attention"),
        "kv_k": timings.get("kv_k", plan.kv_k),
        "kv_v": timings.get("kv_v", plan.kv_v),
        "kv_bytes": timings["kv_bytes"],
        "chunks": timings["num_chunks"],
        "timings": {stage: timings[stage] for stage in _STAGES},
    }


def stage_lines(completion: "Completion") -> list[tuple[str, str]]:
    """Time and stage of what took any."""
    timings = completion.timings
    return [
        (seconds_text(timings[stage]), words) for stage, words in _STAGES.items() if timings[stage]
    ]


def summary_line(completion: "Completion") -> str:
    timings, route = completion.timings, completion.route
    where = (
        f"read by {timings['prefill_engine']} on {route['prefill_node']}, "
        f"{size_text(timings['kv_bytes'])} of KV sent in {timings['num_chunks']} chunk(s)"
        if route["kind"] == "split"
        else f"read on {route['decode_node']}"
    )
    speed = f", then {1 / timings['tpot_s']:.1f} tokens/s" if timings["tpot_s"] else ""
    return (
        f"{route['kind']}: {completion.num_prompt_tokens} prompt tokens {where}; "
        f"first token after {seconds_text(timings['ttft_s'])}{speed}"
    )
