"""Random weights made in their stored form: random codes, scales that give the wanted deviation.

Quantizing random floats would give the same statistics at a hundredth of the speed. Nothing here
writes files; `synth` does.

Block layouts: ggml-common.h in llama.cpp.
"""

from collections.abc import Iterator
from statistics import NormalDist

import gguf
import numpy as np

_Type = gguf.GGMLQuantizationType

# Distinct codes per value; codes are uniform, so their deviation is known.
_LEVELS = {
    _Type.Q8_0: 256,
    _Type.Q4_0: 16,
    _Type.Q5_0: 32,
    _Type.Q5_1: 32,
    _Type.Q4_K: 16,
    _Type.Q5_K: 32,
    _Type.Q6_K: 64,
}
# Eight 6-bit scales and eight 6-bit minimums, all 32, as K-quants pack them into 12 bytes.
_K_SCALE = 32
_PACKED_K_SCALES = bytes([0xA0] * 8 + [0] * 4)


def random_data(
    kind: gguf.GGMLQuantizationType,
    num_values: int,
    std: float,
    rng: np.random.Generator,
    chunk_bytes: int,
) -> Iterator[np.ndarray]:
    """The stored bytes of `num_values` values with mean 0 and deviation `std`, in uint8 chunks."""
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    num_blocks = num_values // block_size
    chunk_blocks = max(1, chunk_bytes // block_bytes)
    for start in range(0, num_blocks, chunk_blocks):
        count = min(chunk_blocks, num_blocks - start)
        if kind == _Type.F32:
            values = rng.standard_normal(count, np.float32) * np.float32(std)
            yield values.view(np.uint8)
        elif kind in (_Type.F16, _Type.BF16):
            yield _normal_table(kind, std)[_random_bytes(rng, count)].view(np.uint8)
        else:
            random_bits, fixed_bits = _block_pattern(kind, std)
            blocks = _random_bytes(rng, count * block_bytes).reshape(count, block_bytes)
            blocks &= random_bits
            blocks |= fixed_bits
            yield blocks.reshape(-1)


def _random_bytes(rng: np.random.Generator, count: int) -> np.ndarray:
    # Whole words, which is several times faster than drawing bytes.
    words = rng.integers(0, 2**64, -(-count // 8), np.uint64)
    return words.view(np.uint8)[:count]


def _normal_table(kind: gguf.GGMLQuantizationType, std: float) -> np.ndarray:
    """The 256 quantiles of a normal distribution: a random byte picks one."""
    normal = NormalDist()
    quantiles = np.array([normal.inv_cdf((i + 0.5) / 256) for i in range(256)])
    values = (quantiles * (std / quantiles.std())).astype(np.float32)
    stored: np.ndarray = gguf.quants.quantize(values, kind).view(np.uint16)
    return stored


def _block_pattern(kind: gguf.GGMLQuantizationType, std: float) -> tuple[np.ndarray, np.ndarray]:
    """Which bits of a block are random, and the values of the others."""
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    random_bits = np.full(block_bytes, 0xFF, np.uint8)
    fixed_bits = np.zeros(block_bytes, np.uint8)

    def fix(offset: int, data: bytes) -> None:
        random_bits[offset : offset + len(data)] = 0
        fixed_bits[offset : offset + len(data)] = list(data)

    levels = _LEVELS[kind]
    step = std / ((levels**2 - 1) / 12) ** 0.5
    center = (levels - 1) / 2
    match kind:
        case _Type.Q5_1:
            fix(0, _half(step))
            fix(2, _half(-center * step))
        case _Type.Q4_K | _Type.Q5_K:
            fix(0, _half(step / _K_SCALE))
            fix(2, _half(center * step / _K_SCALE))
            fix(4, _PACKED_K_SCALES)
        case _Type.Q6_K:
            fix(192, bytes([_K_SCALE] * 16))
            fix(208, _half(step / _K_SCALE))
            random_bits[209] = 0x80
        case _:
            # These codes are centred half a step off zero. A random sign of the scale cancels
            # that: a common mean would pull every activation into one direction, layer by layer.
            fix(0, _half(step))
            random_bits[1] = 0x80
    return random_bits, fixed_bits


def _half(value: float) -> bytes:
    return np.float16(value).tobytes()
