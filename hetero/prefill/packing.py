"""From the KV pool to rows in host memory, on the GPU where Triton runs and on the CPU elsewhere.

Axes: L layers of a group, T tokens, G KV heads, D head_dim, B bytes of a row.
"""

import time
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from hetero.errors import CodecError
from hetero.kv.layout import KVLayout
from hetero.kv.rows import Kind, pack_rows
from hetero.prefill.streams import Lane, Mark


class PackedRows(Protocol):
    """Rows on their way to host memory."""

    def is_ready(self) -> bool:
        """Whether `rows` would not wait."""

    def rows(self) -> npt.NDArray[np.uint8]:
        """(L, T, B), once they are there. Raises: CodecError naming a layer with inf or nan."""

    def seconds(self) -> float:
        """What rotating and quantizing took."""


class Packer(Protocol):
    def pack(self, values_LTGD: torch.Tensor, kind: Kind, first_layer: int) -> PackedRows: ...


class HostPacker:
    """Values go to the CPU, where ggml quantizes them."""

    def __init__(self, layout: KVLayout) -> None:
        self._layout = layout

    def pack(self, values_LTGD: torch.Tensor, kind: Kind, first_layer: int) -> PackedRows:
        values = values_LTGD.to("cpu", torch.float32).numpy()
        started = time.perf_counter()
        try:
            rows = pack_rows(values, kind, self._layout)
        except CodecError:
            finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            raise _not_finite(kind, first_layer + int(finite.argmin())) from None
        return _HostRows(rows, time.perf_counter() - started)


class _HostRows:
    def __init__(self, rows: npt.NDArray[np.uint8], seconds: float) -> None:
        self._rows = rows
        self._seconds = seconds

    def is_ready(self) -> bool:
        return True

    def rows(self) -> npt.NDArray[np.uint8]:
        return self._rows

    def seconds(self) -> float:
        return self._seconds


class KernelPacker:
    """Packed where it was computed; a lane of its own copies rows to pinned host memory.

    Torch's allocator of pinned memory is the ring of buffers: what a sent frame gives up, a later
    one gets, and how much is in use is bounded by those who wait for frames to be sent.
    """

    def __init__(self, layout: KVLayout, device: torch.device) -> None:
        self._layout = layout
        self._device = device
        self._lane = Lane(device)

    def pack(self, values_LTGD: torch.Tensor, kind: Kind, first_layer: int) -> PackedRows:
        from hetero.kv.pack_kernel import pack_rows_on_gpu

        layout, device = self._layout, self._device
        layers, tokens = values_LTGD.shape[:2]
        shape = (layers, tokens, layout.row_bytes(kind))
        rows_LTB = torch.empty(shape, dtype=torch.uint8, device=device)
        not_finite_L = torch.zeros(layers, dtype=torch.int32, device=device)
        started = Mark(device, timed=True)
        pack_rows_on_gpu(
            values_LTGD,
            rows_LTB,
            not_finite_L,
            type_name=layout.k_type if kind == "k" else layout.v_type,
            rotation=layout.k_rotation if kind == "k" else layout.v_rotation,
        )
        packed = Mark(device, timed=True)
        with self._lane:
            self._lane.wait(packed)
            host_LTB, host_L = (_to_host(tensor) for tensor in (rows_LTB, not_finite_L))
            self._lane.uses(rows_LTB)
            self._lane.uses(not_finite_L)
            copied = Mark(device)
        return _CopiedRows(host_LTB, host_L, kind, first_layer, started, packed, copied)


class _CopiedRows:
    def __init__(
        self,
        rows_LTB: torch.Tensor,
        not_finite_L: torch.Tensor,
        kind: Kind,
        first_layer: int,
        started: Mark,
        packed: Mark,
        copied: Mark,
    ) -> None:
        self._rows_LTB = rows_LTB
        self._not_finite_L = not_finite_L
        self._kind: Kind = kind
        self._first_layer = first_layer
        self._started = started
        self._packed = packed
        self._copied = copied

    def is_ready(self) -> bool:
        return self._copied.is_reached()

    def rows(self) -> npt.NDArray[np.uint8]:
        self._copied.wait()
        bad = self._not_finite_L.nonzero()
        if len(bad):
            raise _not_finite(self._kind, self._first_layer + int(bad[0]))
        rows: npt.NDArray[np.uint8] = self._rows_LTB.numpy()
        return rows

    def seconds(self) -> float:
        return self._started.seconds_to(self._packed)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _not_finite(kind: Kind, layer: int) -> CodecError:
    return CodecError(
        f"{kind} rows of layer {layer}: need finite values, have inf or nan: the model's weights, "
        "or activations beyond the compute type; try bfloat16 or float32"
    )
