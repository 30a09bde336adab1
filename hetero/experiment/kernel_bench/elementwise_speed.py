"""Figures `op_*`: what happens between matrix products, against a copy on the device and against
torch's own operations.

Axes: T tokens, E hidden, F ffn, H query heads, G KV heads, D head_dim, R rotated pairs.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from hetero.experiment.figures import Figure
from hetero.experiment.kernel_bench.bandwidth import bandwidth_figure
from hetero.experiment.kernel_bench.physics import (
    add_norm_bytes,
    norm_bytes,
    rope_bytes,
    silu_mul_bytes,
)
from hetero.experiment.kernel_bench.race import Bench, race
from hetero.experiment.kernel_bench.stopwatch import Call
from hetero.experiment.measuring import Measurement
from hetero.prefill.kernels.elementwise import TritonOps
from hetero.prefill.ops import Heads, Ops, TorchOps
from hetero.prefill.rope import RopeTable

_EPS = 1e-5

# An operation's calls: the same inputs for whichever ops do it.
_MakeCall = Callable[[Ops], Call]


def measurements(bench: Bench) -> Iterator[tuple[str, Measurement]]:
    settings = bench.settings
    tokens, hidden, ffn = settings.op_tokens, settings.hidden_size, settings.ffn_size
    heads = settings.num_heads, settings.num_kv_heads, settings.head_dim
    for name, make, num_bytes in (
        ("rms_norm", _rms_norm, norm_bytes(tokens, hidden, 2)),
        ("add_rms_norm", _add_rms_norm, add_norm_bytes(tokens, hidden, 2)),
        ("silu_mul", _silu_mul, silu_mul_bytes(tokens, ffn, 2)),
        ("rope_and_store", _rope_and_store, rope_bytes(tokens, *heads, 2)),
    ):
        yield f"op_{name}", partial(_measure, bench, f"op_{name}", make, num_bytes)


def _measure(
    bench: Bench, name: str, make: Callable[[Bench], _MakeCall], num_bytes: int
) -> list[Figure]:
    made = [make(bench) for _ in range(bench.num_sets(num_bytes))]
    ours = [make_call(TritonOps()) for make_call in made]
    torchs = [make_call(TorchOps()) for make_call in made]
    # Some work in place: their inputs change from call to call.
    result = race(bench, ours, {"torch": torchs}, compare=False)
    says = f"{name.removeprefix('op_')} of {bench.settings.op_tokens} tokens"
    return [bandwidth_figure(bench, name, says, num_bytes, result, None)]


def _normal(bench: Bench, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=bench.dtype, device=bench.device)


def _rms_norm(bench: Bench) -> _MakeCall:
    x_TE = _normal(bench, bench.settings.op_tokens, bench.settings.hidden_size)
    weight_E = _normal(bench, bench.settings.hidden_size)
    return lambda ops: partial(ops.rms_norm, x_TE, weight_E, _EPS)


def _add_rms_norm(bench: Bench) -> _MakeCall:
    shape = (bench.settings.op_tokens, bench.settings.hidden_size)
    x_TE, delta_TE = _normal(bench, *shape), _normal(bench, *shape)
    weight_E = _normal(bench, bench.settings.hidden_size)
    return lambda ops: partial(ops.add_rms_norm, x_TE, delta_TE, weight_E, _EPS)


def _silu_mul(bench: Bench) -> _MakeCall:
    gate_up_T2F = _normal(bench, bench.settings.op_tokens, 2 * bench.settings.ffn_size)
    return lambda ops: partial(ops.silu_mul, gate_up_T2F)


def _rope_and_store(bench: Bench) -> _MakeCall:
    settings = bench.settings
    tokens, head_dim = settings.op_tokens, settings.head_dim
    heads = Heads(
        num_heads=settings.num_heads,
        num_kv_heads=settings.num_kv_heads,
        head_dim=head_dim,
        q_norm_D=None,
        k_norm_D=None,
        norm_eps=_EPS,
    )
    qkv_TX = _normal(bench, tokens, (settings.num_heads + 2 * settings.num_kv_heads) * head_dim)
    angles_TR = torch.rand(tokens, head_dim // 2, device=bench.device)
    rope = RopeTable(cos_PR=angles_TR.cos(), sin_PR=angles_TR.sin(), dim=head_dim, is_adjacent=True)
    indices_T = torch.arange(tokens, dtype=torch.int32, device=bench.device)
    k_CGD, v_CGD = (_normal(bench, tokens, settings.num_kv_heads, head_dim) for _ in range(2))
    return lambda ops: partial(
        ops.rope_and_store, qkv_TX, heads, rope, indices_T, indices_T, k_CGD, v_CGD
    )
