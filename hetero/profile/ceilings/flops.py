"""Large matrix products: operations per second by type, a multiply-add being two.

float32 by numpy's BLAS, a process for each core; the types that numpy lacks by torch, where it is
installed, in one process with a thread for each core.
"""

import time
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

# Of one core's product: tens of milliseconds on what is sold and what is old, 7 MiB.
_ROWS = 768

# A product by all cores takes at least so long; sizes double until it does.
_LEAST_S = 0.01
_FIRST_ROWS, _MOST_ROWS = 256, 8192


def product_flops(rows: int) -> float:
    """Of two square matrices."""
    return 2.0 * rows**3


class Product:
    """A float32 product on one core."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self._left, self._right, self._out = (
            random.random((_ROWS, _ROWS), dtype=np.float32) for _ in range(3)
        )

    def f32(self) -> float:
        np.matmul(self._left, self._right, out=self._out)
        return product_flops(_ROWS)


class TorchProducts:
    """In a process of its own: importing torch takes seconds and hundreds of megabytes."""

    def __init__(self, num_threads: int) -> None:
        import torch

        torch.set_num_threads(num_threads)


def torch_rates(task: TorchProducts, seconds: float) -> dict[str, list[float]]:
    """Samples for bf16, f16 and int8, operations per second. A type that torch can't multiply here
    is missing.

    seconds: about, for all; one product too slow for its share is still finished.
    """
    import torch

    types = {"bf16": torch.bfloat16, "f16": torch.float16, "int8": torch.int8}
    rates = {}
    for name, dtype in types.items():
        # torch's refusals come as any of the three.
        try:
            rates[name] = _samples(dtype, seconds / len(types))
        except (RuntimeError, NotImplementedError, TypeError):
            continue
    return rates


def _samples(dtype: "torch.dtype", seconds: float) -> list[float]:
    deadline = time.perf_counter() + seconds
    rows = _FIRST_ROWS
    while True:
        left, right = (_random(rows, dtype) for _ in range(2))
        took = median(_product_s(left, right) for _ in range(3))
        if took >= _LEAST_S or 2 * rows > _MOST_ROWS or time.perf_counter() > deadline:
            break
        rows *= 2
    samples = [product_flops(rows) / took]
    while time.perf_counter() < deadline:
        samples.append(product_flops(rows) / _product_s(left, right))
    return samples


def _random(rows: int, dtype: "torch.dtype") -> "torch.Tensor":
    import torch

    if dtype == torch.int8:
        return torch.randint(-128, 128, (rows, rows), dtype=dtype)
    return torch.randn(rows, rows).to(dtype)


def _product_s(left: "torch.Tensor", right: "torch.Tensor") -> float:
    import torch

    # torch.mm wraps around in int8; this one adds up in int32, as engines do.
    multiply: Any = torch._int_mm if left.dtype == torch.int8 else torch.mm
    started = time.perf_counter()
    multiply(left, right)
    return time.perf_counter() - started
