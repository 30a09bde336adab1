"""Figures `pack_*`: rotating and quantizing K into cache rows, against a copy on the device.

Axes: L layers, T tokens, C cells, G KV heads, D head_dim, B bytes of a row.
"""

from collections.abc import Iterator
from functools import partial

import torch

from hetero.experiment.figures import Figure, at_least
from hetero.experiment.kernel_bench.bandwidth import bandwidth_figure
from hetero.experiment.kernel_bench.physics import pack_bytes
from hetero.experiment.kernel_bench.race import Bench, race
from hetero.experiment.kernel_bench.stopwatch import Call
from hetero.experiment.kernel_bench.torch_pack import torch_pack_f16, torch_pack_q8_0
from hetero.experiment.measuring import Measurement
from hetero.kv.layout import KVLayout, kv_layout
from hetero.kv.pack_kernel import pack_rows_on_gpu

_CASES = (("q8_0", 128), ("q4_0", 128), ("f16", 128), ("q8_0", 64), ("q8_0", 256))


def measurements(bench: Bench) -> Iterator[tuple[str, Measurement]]:
    for type_name, head_dim in _CASES:
        name = f"pack_{type_name}_head_dim_{head_dim}"
        yield name, partial(_measure, bench, name, type_name, head_dim)


def _measure(bench: Bench, name: str, type_name: str, head_dim: int) -> list[Figure]:
    settings = bench.settings
    layout = kv_layout(
        num_layers=settings.pack_layers,
        num_kv_heads=settings.pack_heads,
        head_dim_k=head_dim,
        head_dim_v=head_dim,
        k_type=type_name,
        v_type=type_name,
    )
    num_rows = settings.pack_layers * settings.pack_tokens
    num_bytes = pack_bytes(num_rows, settings.pack_heads * head_dim, type_name, 2)
    # As in the pool: other prompts' cells lie between one layer's and the next one's.
    shape = (settings.pack_layers, 2 * settings.pack_tokens, settings.pack_heads, head_dim)
    inputs = [
        torch.randn(shape, dtype=bench.dtype, device=bench.device)[:, : settings.pack_tokens]
        for _ in range(bench.num_sets(num_bytes))
    ]
    ours: list[Call] = [_pack_call(values_LTGD, layout) for values_LTGD in inputs]
    peers: dict[str, list[Call]] = {}
    if type_name == "q8_0":
        peers["torch"] = [partial(torch_pack_q8_0, x, layout.k_rotation) for x in inputs]
    elif type_name == "f16":
        peers["torch"] = [partial(torch_pack_f16, x) for x in inputs]
    result = race(bench, ours, peers)
    says = f"16-bit values to rows of {type_name}, rotation {layout.k_rotation or 'none'}"
    return [bandwidth_figure(bench, name, says, num_bytes, result, at_least(0.8))]


def _pack_call(values_LTGD: torch.Tensor, layout: KVLayout) -> Call:
    shape, device = values_LTGD.shape[:2], values_LTGD.device
    rows_LTB = torch.empty(*shape, layout.k_row_bytes, dtype=torch.uint8, device=device)
    not_finite_L = torch.zeros(shape[0], dtype=torch.int32, device=device)

    def call() -> torch.Tensor:
        pack_rows_on_gpu(
            values_LTGD,
            rows_LTB,
            not_finite_L,
            type_name=layout.k_type,
            rotation=layout.k_rotation,
        )
        return rows_LTB

    return call
