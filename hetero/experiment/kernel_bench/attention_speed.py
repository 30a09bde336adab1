"""Figures `attention_*`: the attention kernel against torch's, on whole prompts, on the last part
of one, and on many prompts in a step.

Axes: T new tokens, C cells, H query heads, G KV heads, D head_dim.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from hetero.errors import EngineError
from hetero.experiment.figures import Figure, Target, at_least, rounded
from hetero.experiment.kernel_bench.attention_peers import (
    TORCH_BACKENDS,
    Peer,
    any_prompt_peers,
    whole_prompt_peers,
)
from hetero.experiment.kernel_bench.physics import attention_flops, visible_pairs
from hetero.experiment.kernel_bench.race import Bench, Race, race
from hetero.experiment.kernel_bench.stopwatch import Call
from hetero.experiment.measuring import Measurement
from hetero.prefill.attention import SdpaAttention
from hetero.prefill.kernels.attention import TritonAttention
from hetero.prefill.span import Span

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # q_THD, k_CGD, v_CGD

_SMALL_HEAD = 64


def measurements(bench: Bench) -> Iterator[tuple[str, Measurement]]:
    settings = bench.settings
    for num_tokens in settings.attention_tokens:
        name = f"attention_{num_tokens}"
        head_dim = settings.head_dim
        yield name, partial(_whole_prompt, bench, name, num_tokens, head_dim, at_least(0.75))
    name = f"attention_head_dim_{_SMALL_HEAD}"
    tokens = settings.small_head_tokens
    yield name, partial(_whole_prompt, bench, name, tokens, _SMALL_HEAD, None)
    yield "attention_chunk", partial(_chunk, bench)
    yield "attention_packed", partial(_packed, bench)


def _whole_prompt(
    bench: Bench, name: str, num_tokens: int, head_dim: int, target: Target | None
) -> list[Figure]:
    spans = [Span(cell=0, first=0, end=num_tokens)]
    result = _race(bench, spans, head_dim, whole_prompt_peers())
    torchs = [peer for peer in TORCH_BACKENDS if peer in result.rounds]
    if not torchs:
        raise EngineError(f"{name}: need one of torch's backends, have none: {result.refused}")
    best = min(torchs, key=result.seconds)
    says = "the time of torch's fastest backend over ours: one prompt, from its first token"
    return [_figure(bench, name, says, spans, head_dim, result, best, target)]


def _chunk(bench: Bench) -> list[Figure]:
    first, end = bench.settings.chunk
    spans = [Span(cell=0, first=first, end=end)]
    result = _race(bench, spans, bench.settings.head_dim, any_prompt_peers())
    says = f"torch's time over ours: the last {end - first} of {end} tokens"
    head_dim = bench.settings.head_dim
    return [_figure(bench, "attention_chunk", says, spans, head_dim, result, "sdpa", None)]


def _packed(bench: Bench) -> list[Figure]:
    """Torch reads them one by one: SDPA knows no prompts of several lengths."""
    spans, cell = [], 0
    for length in bench.settings.packed_lengths:
        spans.append(Span(cell=cell, first=0, end=length))
        cell += length
    head_dim = bench.settings.head_dim
    result = _race(bench, spans, head_dim, {})
    says = f"torch's time over ours: {len(spans)} prompts in a step, torch's one by one"
    return [_figure(bench, "attention_packed", says, spans, head_dim, result, "sdpa", None)]


def _race(bench: Bench, spans: Sequence[Span], head_dim: int, peers: dict[str, Peer]) -> Race:
    """Without peers against SDPA over the same spans."""
    settings = bench.settings
    num_new = sum(span.num_new for span in spans)
    num_cells = max(span.cell + span.end for span in spans)
    kv_heads = settings.num_kv_heads
    set_values = (num_new * settings.num_heads + 2 * num_cells * kv_heads) * head_dim

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=bench.dtype, device=bench.device)

    inputs: list[Inputs] = [
        (
            normal(num_new, settings.num_heads, head_dim),
            normal(num_cells, kv_heads, head_dim),
            normal(num_cells, kv_heads, head_dim),
        )
        for _ in range(bench.num_sets(2 * set_values))
    ]
    attention = TritonAttention(
        num_heads=settings.num_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        capability=bench.capability,
    )
    plan = attention.plan(spans, bench.device)
    ours: list[Call] = [partial(attention, *tensors, plan) for tensors in inputs]
    others = {name: [peer(*tensors) for tensors in inputs] for name, peer in peers.items()}
    if not peers:
        others["sdpa"] = [partial(SdpaAttention(), *tensors, spans) for tensors in inputs]
    return race(bench, ours, others)


def _figure(
    bench: Bench,
    name: str,
    says: str,
    spans: Sequence[Span],
    head_dim: int,
    result: Race,
    rival: str,
    target: Target | None,
) -> Figure:
    if rival not in result.rounds:
        raise EngineError(f"{name}: need {rival} to compare with: {result.refused[rival]}")
    settings = bench.settings
    pairs = sum(visible_pairs(span.first, span.end) for span in spans)
    rate = attention_flops(settings.num_heads, head_dim, pairs) / result.seconds()
    return Figure(
        name=name,
        says=says,
        value=result.times_faster(rival),
        unit="ratio",
        target=target,
        arms=result.samples(),
        parameters={
            "rival": rival,
            "rate": rounded(rate / 1e12),
            "rate_unit": "TFLOP/s",
            "share": rounded(rate / bench.ceilings.matmul_flops_per_s),
            "share_of": "matmul",
            **result.comparison(),
            "heads": [settings.num_heads, settings.num_kv_heads, head_dim],
            "spans": [[span.first, span.end] for span in spans],
        },
    )
