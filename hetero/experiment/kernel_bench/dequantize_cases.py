"""The launches that dequantizing a matrix of each type makes: what `compiling` asks a chip for."""

from collections.abc import Callable, Iterator
from functools import partial

import gguf
import torch

from hetero.prefill.kernels.dequantize import DEQUANTIZABLE, dequantize

# A square matrix of an 8B model: enough programs for any GPU, and divisible by every block size.
NUM_ROWS = NUM_COLS = 4096


def dequantize_cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """(label, launch) for each type that has a kernel; the tensors are meta tensors."""
    for kind in sorted(DEQUANTIZABLE, key=lambda kind: kind.name):
        block_values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if block_values == 1:  # a plain cast, which is torch's
            continue
        row_bytes = NUM_COLS // block_values * block_bytes
        blocks_RB = torch.empty(NUM_ROWS, row_bytes, dtype=torch.uint8, device="meta")
        out_RC = torch.empty(NUM_ROWS, NUM_COLS, dtype=torch.bfloat16, device="meta")
        yield f"dequantize {kind.name}", partial(dequantize, blocks_RB, kind, out_RC)
