"""f32 rows to ggml blocks and back, by the library's own SIMD kernels.

`from_float` of the CPU type traits is what llama.cpp calls when it writes its cache, so packed
rows are the bytes it would have written (`ggml_quantize_chunk`, the scalar reference, is twelve
times slower and rounds ties the other way). `hetero.kv.codecs` says the same in readable numpy.
"""

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from hetero.errors import CodecError
from hetero.llama.library import ggml_library

_FromFloat = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _TypeTraits(ctypes.Structure):
    """struct ggml_type_traits_cpu, as far as we read it."""

    _fields_ = [("from_float", _FromFloat)]


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    library = ggml_library("ggml-cpu")
    library.ggml_cpu_init()  # fills the f16 tables that some kernels read
    library.ggml_get_type_traits_cpu.restype = ctypes.POINTER(_TypeTraits)
    library.ggml_get_type_traits_cpu.argtypes = [ctypes.c_int]
    return library


@lru_cache(maxsize=64)
def _from_float(ggml_type: int) -> Any:
    function = _library().ggml_get_type_traits_cpu(ggml_type).contents.from_float
    if not function:
        raise CodecError(f"ggml type {ggml_type}: need a quantizer in libggml-cpu, have none")
    return function


def quantize(values: npt.NDArray[np.float32], ggml_type: int, out: npt.NDArray[np.uint8]) -> None:
    """Encode contiguous f32 values into `out`. Whole blocks only; runs without Python's lock."""
    if not (values.flags.c_contiguous and out.flags.c_contiguous and values.dtype == np.float32):
        raise CodecError("quantize: need contiguous float32 values and bytes")
    _from_float(ggml_type)(values.ctypes.data, out.ctypes.data, values.size)
