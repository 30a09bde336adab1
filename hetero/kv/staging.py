"""The blob a decode node restores: llama.cpp's sequence state, rows placed at their final offset.

The receiver writes every header; only rows come from the network. Layout (little-endian, packed),
as llama-cpp-python 0.3.36 reads it, checked at start-up by `hetero.kv.probe`:

    u32 magic, i32 source sequence (ignored), u32 streams
    stream 0: u32 cells; per cell i32 position, u32 1, i32 sequence (ignored);
              u32 0 (V untransposed), u32 layers;
              per layer i32 type, u64 row bytes, rows: all K layers, then all V layers
    other streams: u32 0
"""

import struct
import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hetero.errors import EngineError, PeerError
from hetero.kv.blob_memory import BlobMemory
from hetero.kv.coverage import Coverage
from hetero.kv.layout import KVLayout
from hetero.kv.rows import Kind, RowFrame
from hetero.kv.types import kv_type

STATE_MAGIC = 0xAF143CD8
_HEAD = struct.Struct("<IiI")  # magic, sequence, streams
_COUNT = struct.Struct("<I")
_CELLS = np.dtype([("position", "<i4"), ("sequences", "<u4"), ("sequence", "<i4")])
_BODY = struct.Struct("<II")  # v_trans, layers
_LAYER = struct.Struct("<iQ")  # type, row bytes


class StateLayout:
    """Where everything lies in the state of one sequence of `num_tokens` cells."""

    def __init__(self, layout: KVLayout, num_tokens: int, num_streams: int) -> None:
        self.kv = layout
        self.num_tokens = num_tokens
        self.num_streams = num_streams
        self.cells_offset = _HEAD.size + _COUNT.size
        self.body_offset = self.cells_offset + num_tokens * _CELLS.itemsize
        self._first_layer = {"k": self.body_offset + _BODY.size}
        self._layer_bytes: dict[str, int] = {}
        for kind in ("k", "v"):
            self._layer_bytes[kind] = _LAYER.size + num_tokens * layout.row_bytes(kind)
            end = self._first_layer[kind] + layout.num_layers * self._layer_bytes[kind]
            if kind == "k":
                self._first_layer["v"] = end
        self.tail_offset = end
        self.num_bytes = end + _COUNT.size * (num_streams - 1)

    def layer_offset(self, kind: Kind, layer: int) -> int:
        """Where a layer's header begins; its rows follow it."""
        return self._first_layer[kind] + layer * self._layer_bytes[kind]

    def headers(self, positions: npt.NDArray[np.int32]) -> list[tuple[int, bytes]]:
        """Every (offset, bytes) that is not a row."""
        cells = np.zeros(self.num_tokens, _CELLS)
        cells["position"] = positions
        cells["sequences"] = 1
        pieces = [
            (0, _HEAD.pack(STATE_MAGIC, 0, self.num_streams) + _COUNT.pack(self.num_tokens)),
            (self.cells_offset, cells.tobytes()),
            (self.body_offset, _BODY.pack(0, self.kv.num_layers)),
            (self.tail_offset, bytes(_COUNT.size * (self.num_streams - 1))),
        ]
        kinds: tuple[tuple[Kind, str], ...] = (("k", self.kv.k_type), ("v", self.kv.v_type))
        for kind, type_name in kinds:
            header = _LAYER.pack(kv_type(type_name).ggml_id, self.kv.row_bytes(kind))
            pieces += [
                (self.layer_offset(kind, layer), header) for layer in range(self.kv.num_layers)
            ]
        return pieces

    def rows(self, blob: npt.NDArray[np.uint8], kind: Kind, layer: int) -> npt.NDArray[np.uint8]:
        """(tokens, row_bytes) view of one layer's rows."""
        start = self.layer_offset(kind, layer) + _LAYER.size
        row_bytes = self.kv.row_bytes(kind)
        return blob[start : start + self.num_tokens * row_bytes].reshape(-1, row_bytes)


class StagingBlob:
    """A sequence state being filled by row frames, in any order, by any number of threads."""

    def __init__(
        self,
        layout: KVLayout,
        num_tokens: int,
        num_streams: int,
        memory: BlobMemory | None = None,
    ) -> None:
        """Raises: MemoryError."""
        self._state = StateLayout(layout, num_tokens, num_streams)
        size = self._state.num_bytes
        self.blob = np.empty(size, np.uint8) if memory is None else memory.take(size)
        for offset, header in self._state.headers(np.arange(num_tokens, dtype=np.int32)):
            self.blob[offset : offset + len(header)] = np.frombuffer(header, np.uint8)
        self._claims = {kind: [Coverage() for _ in range(layout.num_layers)] for kind in ("k", "v")}
        self._missing_bytes = num_tokens * layout.token_bytes
        self._lock = threading.Lock()  # of the two above

    @property
    def num_bytes(self) -> int:
        return self.blob.nbytes

    @property
    def is_complete(self) -> bool:
        return self._missing_bytes == 0

    def take(self) -> npt.NDArray[np.uint8]:
        """The blob, which is the caller's alone from now on."""
        blob, self.blob = self.blob, np.empty(0, np.uint8)
        return blob

    def place(self, frame: RowFrame) -> None:
        """Copy a frame's rows to their final offset.

        Raises: PeerError for rows outside the sequence, of a wrong size, or there already.
        """
        self._check(frame)
        with self._lock:
            self._claim(frame)
        for index, layer in enumerate(range(frame.first_layer, frame.end_layer)):
            rows = self._state.rows(self.blob, frame.kind, layer)
            rows[frame.first_token : frame.end_token] = frame.rows[index]
        with self._lock:
            self._missing_bytes -= frame.rows.nbytes

    def _check(self, frame: RowFrame) -> None:
        kv, num_tokens = self._state.kv, self._state.num_tokens
        if frame.kind not in self._claims:
            raise PeerError(f"rows: need kind k or v, have {frame.kind!r}")
        if not 0 <= frame.first_layer < frame.end_layer <= kv.num_layers:
            raise PeerError(
                f"{frame.kind} rows: need layers within 0-{kv.num_layers}, "
                f"have {frame.first_layer}-{frame.end_layer}"
            )
        if not 0 <= frame.first_token < frame.end_token <= num_tokens:
            raise PeerError(
                f"{frame.kind} rows: need tokens within 0-{num_tokens}, "
                f"have {frame.first_token}-{frame.end_token}"
            )
        num_layers = frame.end_layer - frame.first_layer
        shape = (num_layers, frame.end_token - frame.first_token, kv.row_bytes(frame.kind))
        if frame.rows.shape != shape:
            raise PeerError(f"{frame.kind} rows: need shape {shape}, have {frame.rows.shape}")

    def _claim(self, frame: RowFrame) -> None:
        """All of a frame's places or none: two threads never write the same one."""
        claims = self._claims[frame.kind][frame.first_layer : frame.end_layer]
        for layer, claim in enumerate(claims, frame.first_layer):
            twice = claim.overlap(frame.first_token, frame.end_token)
            if twice is not None:
                raise PeerError(
                    f"{frame.kind} rows of layer {layer}: need token {twice} once, have it twice"
                )
        for claim in claims:
            claim.add(frame.first_token, frame.end_token)


def read_state(
    blob: npt.NDArray[np.uint8], layout: KVLayout, positions: Sequence[int], num_streams: int = 1
) -> StateLayout:
    """Check that a state llama.cpp exported holds exactly `positions` in this layout.

    Raises: EngineError naming the first difference: the library's format or the model's cache is
    not what we think it is.
    """
    state = StateLayout(layout, len(positions), num_streams)
    if blob.nbytes != state.num_bytes:
        raise EngineError(
            f"llama.cpp sequence state: need {state.num_bytes} bytes for {len(positions)} tokens, "
            f"have {blob.nbytes}; its format or this model's cache is of another kind"
        )
    for offset, header in state.headers(np.asarray(positions, np.int32)):
        have = blob[offset : offset + len(header)].tobytes()
        if offset == 0:
            have, header = _without_sequence(have), _without_sequence(header)
        elif offset == state.cells_offset:
            have, header = _without_sequences(have), _without_sequences(header)
        if have != header:
            raise EngineError(
                f"llama.cpp sequence state: need {header[:16].hex()} at byte {offset}, "
                f"have {have[:16].hex()}; its format has changed"
            )
    return state


def _without_sequence(head: bytes) -> bytes:
    """The head without the source sequence id, which a restore ignores."""
    return head[:4] + head[8:]


def _without_sequences(cells: bytes) -> bytes:
    table = np.frombuffer(cells, _CELLS).copy()
    table["sequence"] = 0
    return table.tobytes()
