"""Figures `dequantize_*`: a matrix of each type to bf16, against a copy on the device.

Axes: R rows, B bytes of a row, C values of a row.
"""

from collections.abc import Iterator
from functools import partial

import gguf
import torch

from hetero.experiment.figures import Figure, at_least
from hetero.experiment.kernel_bench.bandwidth import bandwidth_figure
from hetero.experiment.kernel_bench.physics import dequantize_bytes
from hetero.experiment.kernel_bench.race import Bench, race
from hetero.experiment.kernel_bench.stopwatch import Call
from hetero.experiment.kernel_bench.torch_dequantize import torch_dequantize
from hetero.experiment.measuring import Measurement
from hetero.prefill.kernels.dequantize import DEQUANTIZABLE, dequantize

# Without bit 6 no byte is the high one of an f16 that is inf or nan: any block is a sane one.
_SANE_BITS = 0xBF


def measurements(bench: Bench) -> Iterator[tuple[str, Measurement]]:
    for kind in sorted(DEQUANTIZABLE, key=lambda kind: kind.name):
        if gguf.GGML_QUANT_SIZES[kind][0] > 1:  # the others are torch's casts
            name = f"dequantize_{kind.name.lower()}"
            yield name, partial(_measure, bench, name, kind)


def _measure(bench: Bench, name: str, kind: gguf.GGMLQuantizationType) -> list[Figure]:
    num_rows, num_columns = bench.settings.matrix_shape
    block_values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    num_bytes = dequantize_bytes(num_rows * num_columns, kind, 2)
    shape = (num_rows, num_columns // block_values * block_bytes)
    inputs = [
        torch.empty(shape, dtype=torch.uint8, device=bench.device)
        .random_()
        .bitwise_and_(_SANE_BITS)
        for _ in range(bench.num_sets(num_bytes))
    ]
    ours: list[Call] = [_call(blocks_RB, kind, num_columns, bench.dtype) for blocks_RB in inputs]
    torchs: list[Call] = [partial(torch_dequantize, x, kind, bench.dtype) for x in inputs]
    result = race(bench, ours, {"torch": torchs})
    says = f"a matrix of {kind.name} to 16-bit values"
    return [bandwidth_figure(bench, name, says, num_bytes, result, at_least(0.8))]


def _call(
    blocks_RB: torch.Tensor, kind: gguf.GGMLQuantizationType, num_columns: int, dtype: torch.dtype
) -> Call:
    shape = (len(blocks_RB), num_columns)
    out_RC = torch.empty(shape, dtype=dtype, device=blocks_RB.device)

    def call() -> torch.Tensor:
        dequantize(blocks_RB, kind, out_RC)
        return out_RC

    return call
