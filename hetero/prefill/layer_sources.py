"""Where a layer's matrices come from when their turn is there: from memory, or made just in time.

Axes: E hidden, D head_dim, O outputs, I inputs of a matrix.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import gguf
import torch

from hetero.prefill.streams import Lane, Mark
from hetero.prefill.torch_weights import FUSED, LayerWeights, Linear

# Parts of a layer's blob start at multiples of this: what a GPU's copies and kernels like best.
PART_ALIGNMENT = 256


@dataclass(frozen=True, slots=True)
class ResidentLayers:
    """Every layer in memory, in the type that computes."""

    weights: Sequence[LayerWeights]

    def layers(self) -> Iterator[LayerWeights]:
        return iter(self.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMatrix:
    """A matrix in a layer's blob, and which rows of a fused matrix it becomes."""

    fused: str  # a key of FUSED
    first_row: int
    num_rows: int
    num_columns: int
    kind: gguf.GGMLQuantizationType
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLayer:
    """A layer as in the file: its matrices' blocks in one blob, its small tensors ready for use."""

    blob: torch.Tensor  # uint8, on the GPU or in pinned host memory
    matrices: Sequence[StoredMatrix]
    vectors: Mapping[str, torch.Tensor | None]  # the norms, and the fused biases by FUSED's keys


class StagedLayers:
    """Layers kept as stored and dequantized one ahead: while one computes, the next is made.

    Two sets of 16-bit matrices take turns. Blobs in host memory are first copied beside them.
    """

    def __init__(
        self, layers: Sequence[StoredLayer], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._layers = layers
        self._device = device
        self._lane = Lane(device)
        self._slots = [_Slot(layers, dtype, device) for _ in range(min(2, len(layers)))]

    def layers(self) -> Iterator[LayerWeights]:
        num_layers = len(self._layers)
        for index in range(num_layers):
            slot = self._slot_with(index, spared=None)
            # The last layer computes while the first is made again, for the next pass.
            self._slot_with((index + 1) % num_layers, spared=slot)
            slot.filled.wait_on_device()
            try:
                yield slot.weights(self._layers[index])
            finally:
                slot.used = Mark(self._device)

    def _slot_with(self, index: int, spared: "_Slot | None") -> "_Slot":
        """The slot that holds a layer, or will when the work given to the lane is done."""
        for slot in self._slots:
            if slot.index == index:
                return slot
        slot = next(slot for slot in self._slots if slot is not spared)
        with self._lane:
            self._lane.wait(slot.used)
            slot.fill(index, self._layers[index], self._lane)
        return slot


class _Slot:
    """One layer's fused matrices in the type that computes, and where its blob lands."""

    def __init__(
        self, layers: Sequence[StoredLayer], dtype: torch.dtype, device: torch.device
    ) -> None:
        shapes = {}
        for matrix in layers[0].matrices:
            rows = max(
                m.first_row + m.num_rows for m in layers[0].matrices if m.fused == matrix.fused
            )
            shapes[matrix.fused] = (rows, matrix.num_columns)
        self._fused = {
            name: torch.empty(shape, dtype=dtype, device=device) for name, shape in shapes.items()
        }
        self._landing: torch.Tensor | None = None
        if any(layer.blob.device != device for layer in layers):
            largest = max(layer.blob.nbytes for layer in layers)
            self._landing = torch.empty(largest, dtype=torch.uint8, device=device)
        self.index: int | None = None
        self.filled = self.used = Mark(device)
        self._device = device

    def fill(self, index: int, layer: StoredLayer, lane: Lane) -> None:
        """On the current lane: copy the blob here if it is elsewhere, and dequantize it."""
        from hetero.prefill.kernels.dequantize import dequantize

        self.index = None  # neither the old layer nor, should this fail, the new one
        blob = layer.blob
        if self._landing is not None:
            blob = self._landing[: blob.nbytes]
            blob.copy_(layer.blob, non_blocking=True)
        for matrix in layer.matrices:
            blocks = blob[matrix.offset : matrix.offset + matrix.num_bytes]
            rows = self._fused[matrix.fused][matrix.first_row :][: matrix.num_rows]
            dequantize(blocks.view(matrix.num_rows, -1), matrix.kind, rows)
        self.index = index
        self.filled = Mark(self._device)

    def weights(self, layer: StoredLayer) -> LayerWeights:
        return layer_weights(self._fused, layer.vectors)


def layer_weights(
    matrices: Mapping[str, torch.Tensor], vectors: Mapping[str, torch.Tensor | None]
) -> LayerWeights:
    """From fused matrices and biases (both by FUSED's keys) and norms (by their field's names)."""
    linears = {name: Linear(matrices[name], vectors[name]) for name in FUSED}
    norms = {name: tensor for name, tensor in vectors.items() if name not in FUSED}
    return LayerWeights(**linears, **norms)  # type: ignore[arg-type]
