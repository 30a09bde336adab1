"""bfloat16 in Triton's interpreter as a GPU computes it.

The interpreter keeps bfloat16 as its bits: a dot product multiplies them as integers, and rounding
from float32 cuts them off. Products of bfloat16 values are exact in float32, and GPUs round to the
nearest, ties to even.
"""

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def as_float32(handle):
    if handle.dtype.scalar != tl.bfloat16:
        return handle.data
    return (handle.data.astype(np.uint32) << 16).view(np.float32)


def as_bfloat16(values):
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)


def use_exact_bfloat16(monkeypatch):
    cast = InterpreterBuilder.cast_impl

    def dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        product = np.matmul(as_float32(a), as_float32(b), dtype=d.data.dtype)
        return TensorHandle(product + d.data, d.dtype.scalar)

    def cast_impl(self, source, kind):
        scalars = (source.dtype.scalar, kind.scalar)
        if scalars == (tl.float32, tl.bfloat16):
            return TensorHandle(as_bfloat16(source.data), tl.bfloat16)
        return cast(self, source, kind)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)
    for name in ("cast_impl", "create_fp_trunc"):
        monkeypatch.setattr(InterpreterBuilder, name, cast_impl)
