"""Row frames: the unit in which KV travels, and packing one from computed K or V."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from hetero.errors import CodecError
from hetero.kv.layout import KVLayout
from hetero.kv.rotation import rotate
from hetero.kv.types import kv_type
from hetero.llama.quantize import quantize

Kind = Literal["k", "v"]


@dataclass(frozen=True, kw_only=True)
class RowFrame:
    """The K or V rows of layers [first_layer, end_layer) for tokens [first_token, end_token).

    rows: (layers, tokens, row_bytes) uint8, contiguous, as llama.cpp keeps them in its cache.
    """

    kind: Kind
    first_layer: int
    end_layer: int
    first_token: int
    end_token: int
    rows: npt.NDArray[np.uint8]


def pack_rows(
    values: npt.NDArray[np.float32], kind: Kind, layout: KVLayout
) -> npt.NDArray[np.uint8]:
    """Rotate and quantize computed K (after RoPE) or V into cache rows.

    Shapes: (layers, tokens, kv_heads, head_dim) float32 -> (layers, tokens, row_bytes) uint8.
    Raises: CodecError if a value is not finite: it would poison every later token.
    """
    contiguous = np.ascontiguousarray(values, np.float32)
    # One BLAS pass: any inf or nan makes the dot product inf or nan.
    if not np.isfinite(np.dot(contiguous.ravel(), contiguous.ravel())):
        raise CodecError(f"{kind} rows: need finite values, have inf or nan")
    rotation = layout.k_rotation if kind == "k" else layout.v_rotation
    element = kv_type(layout.k_type if kind == "k" else layout.v_type)
    layers, tokens = values.shape[:2]
    rows = np.empty((layers, tokens, layout.row_bytes(kind)), np.uint8)
    quantize(rotate(contiguous, rotation) if rotation else contiguous, element.ggml_id, rows)
    return rows
