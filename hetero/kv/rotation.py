"""The Hadamard rotation llama.cpp applies to quantized K and V.

Multiplying each block of a row by the normalized Hadamard matrix spreads outliers over the block,
so that a shared scale loses less. The matrix is its own inverse.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

# Below this size a matrix product beats butterflies: numpy's loops over short runs are slow.
_MATRIX_SIZE = 64

# Rows worked on at a time, small enough that every pass after the first hits the L2 cache.
_TILE_BYTES = 256 * 1024


@lru_cache(maxsize=16)
def hadamard(size: int) -> npt.NDArray[np.float32]:
    """The Sylvester-Hadamard matrix of a power of two, scaled to be orthonormal."""
    if size < 1 or size & (size - 1):
        raise ValueError(f"Hadamard matrix: need a power of two, have {size}")
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (matrix / np.float32(size) ** 0.5).astype(np.float32)


def rotate(values: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """Multiply each run of `size` values by the Hadamard matrix: fast Walsh-Hadamard.

    Shapes: any contiguous array whose last axis is a multiple of `size` -> the same.
    Butterflies down to blocks of 64, then one small matrix product.
    """
    rotated = np.empty_like(values)
    rows = values.reshape(-1, size)
    out = rotated.reshape(-1, size)
    tile = max(1, _TILE_BYTES // (4 * size))
    for start in range(0, len(rows), tile):
        _rotate_tile(rows[start : start + tile], out[start : start + tile])
    return rotated


def _rotate_tile(rows: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> None:
    size = rows.shape[1]
    matrix_size = min(size, _MATRIX_SIZE)
    half = size // 2
    while half >= matrix_size:
        pairs = rows.reshape(len(rows), -1, 2, half)
        mixed = np.empty_like(pairs)
        np.add(pairs[:, :, 0], pairs[:, :, 1], out=mixed[:, :, 0])
        np.subtract(pairs[:, :, 0], pairs[:, :, 1], out=mixed[:, :, 1])
        rows = mixed.reshape(len(rows), size)
        half //= 2
    # The butterflies are unscaled; the matrix carries the scale of the whole transform.
    matrix = hadamard(matrix_size) * np.float32((matrix_size / size) ** 0.5)
    np.matmul(rows.reshape(-1, matrix_size), matrix, out=out.reshape(-1, matrix_size))
