"""A GGUF file's tensors into the weights that the torch model computes with.

Axes: O outputs, I inputs of a matrix; E hidden, V vocabulary.
"""

import math
from collections.abc import Iterator, Mapping

import torch

from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import ModelSpec
from hetero.prefill.layer_sources import (
    PART_ALIGNMENT,
    ResidentLayers,
    StagedLayers,
    StoredLayer,
    StoredMatrix,
    layer_weights,
)
from hetero.prefill.residency import Residency
from hetero.prefill.torch_weights import (
    FUSED,
    LayerSource,
    LayerWeights,
    ModelWeights,
    VocabularyMatrix,
    tensor_shapes,
)
from hetero.prefill.vocabulary import DenseVocabulary, StoredVocabulary

_NORMS = {
    "attention_norm_E": "attn_norm",
    "q_norm_D": "attn_q_norm",
    "k_norm_D": "attn_k_norm",
    "ffn_norm_E": "ffn_norm",
}


class WeightLoader:
    """Reads the tensors that a model uses, one at a time.

    `on_device`: blocks go to the device and are dequantized there; else the gguf package does it
    on the CPU, slower and for every type.
    """

    def __init__(
        self,
        file: GGUFFile,
        spec: ModelSpec,
        dtype: torch.dtype,
        device: torch.device,
        *,
        on_device: bool = False,
    ) -> None:
        """Raises: ModelError if tensors are missing, unknown, or of the wrong shape."""
        self._file = file
        self._spec = spec
        self._dtype = dtype
        self._device = device
        self._on_device = on_device
        self._shapes = tensor_shapes(file, spec)

    def load(self, residency: Residency = "resident") -> ModelWeights:
        """Memory: the weights as they are kept, plus the largest tensor in float32 where the CPU
        dequantizes. The vocabulary's come first: the largest copies go before memory fills.
        """
        embedding = self._vocabulary("token_embd.weight")
        output = self._vocabulary("output.weight") if "output.weight" in self._shapes else embedding
        layers: LayerSource
        if residency == "resident":
            layers = ResidentLayers([self._dense_layer(n) for n in range(self._spec.num_layers)])
        else:
            on_host = residency == "streamed" and self._device.type == "cuda"
            stored = [self._stored_layer(n, on_host) for n in range(self._spec.num_layers)]
            layers = StagedLayers(stored, self._dtype, self._device)
        factors = "rope_freqs.weight"
        return ModelWeights(
            embedding=embedding,
            layers=layers,
            output_norm_E=self._values("output_norm.weight"),
            output=output,
            rope_factors_R=(
                torch.from_numpy(self._file.dequantize(factors))
                if factors in self._shapes
                else None
            ),
        )

    def _vocabulary(self, name: str) -> VocabularyMatrix:
        bias_V = self._values("output.bias") if "output.bias" in self._shapes else None
        if not self._is_dequantizable(name):
            return DenseVocabulary(weight_VE=self._values(name), bias_V=bias_V)
        return StoredVocabulary(
            blocks_VB=torch.from_numpy(self._file.read(name)).to(self._device),
            kind=self._file.tensors[name].type,
            hidden_size=self._spec.hidden_size,
            dtype=self._dtype,
            bias_V=bias_V,
        )

    def _dense_layer(self, index: int) -> LayerWeights:
        matrices = {}
        for fused, names in self._fused_names(index):
            columns = self._shapes[names[0]][1]
            num_rows = sum(self._shapes[name][0] for name in names)
            matrix_OI = torch.empty((num_rows, columns), dtype=self._dtype, device=self._device)
            parts = matrix_OI.split([self._shapes[name][0] for name in names])
            for name, part_OI in zip(names, parts, strict=True):
                self._fill(name, part_OI)
            matrices[fused] = matrix_OI
        return layer_weights(matrices, self._vectors(index))

    def _stored_layer(self, index: int, on_host: bool) -> StoredLayer:
        matrices, offset = [], 0
        for fused, names in self._fused_names(index):
            first_row = 0
            for name in names:
                rows, columns = self._shapes[name]
                tensor = self._file.tensors[name]
                matrices.append(
                    StoredMatrix(
                        fused=fused,
                        first_row=first_row,
                        num_rows=rows,
                        num_columns=columns,
                        kind=tensor.type,
                        offset=offset,
                        num_bytes=tensor.num_bytes,
                    )
                )
                first_row += rows
                offset += math.ceil(tensor.num_bytes / PART_ALIGNMENT) * PART_ALIGNMENT
        names_in_order = [name for _, names in self._fused_names(index) for name in names]
        blob = torch.empty(offset, dtype=torch.uint8, pin_memory=on_host)
        for name, matrix in zip(names_in_order, matrices, strict=True):
            part = blob[matrix.offset : matrix.offset + matrix.num_bytes]
            part.copy_(torch.from_numpy(self._file.read(name)).view(-1))
        return StoredLayer(
            blob=blob if on_host else blob.to(self._device),
            matrices=matrices,
            vectors=self._vectors(index),
        )

    def _vectors(self, index: int) -> Mapping[str, torch.Tensor | None]:
        """Norms by their field's name, biases by their fused matrix's."""
        vectors: dict[str, torch.Tensor | None] = {}
        for field, suffix in _NORMS.items():
            name = f"blk.{index}.{suffix}.weight"
            vectors[field] = self._values(name) if name in self._shapes else None
        for fused, names in self._fused_names(index):
            vectors[fused] = self._fused_bias(names)
        return vectors

    def _fused_bias(self, names: list[str]) -> torch.Tensor | None:
        """Zeros where only some of the matrices have one."""
        biases = [name.removesuffix("weight") + "bias" for name in names]
        if not any(bias in self._shapes for bias in biases):
            return None
        return torch.cat(
            [
                self._values(bias)
                if bias in self._shapes
                else torch.zeros(self._shapes[name][0], dtype=self._dtype, device=self._device)
                for name, bias in zip(names, biases, strict=True)
            ]
        )

    def _fused_names(self, index: int) -> Iterator[tuple[str, list[str]]]:
        for fused, parts in FUSED.items():
            yield fused, [f"blk.{index}.{part}.weight" for part in parts]

    def _values(self, name: str) -> torch.Tensor:
        values = torch.empty(self._shapes[name], dtype=self._dtype, device=self._device)
        self._fill(name, values)
        return values

    def _fill(self, name: str, values: torch.Tensor) -> None:
        """Dequantize a tensor into its place."""
        if values.ndim == 2 and self._is_dequantizable(name):
            from hetero.prefill.kernels.dequantize import dequantize

            blocks = torch.from_numpy(self._file.read(name)).to(self._device)
            dequantize(blocks, self._file.tensors[name].type, values)
        else:
            values.copy_(torch.from_numpy(self._file.dequantize(name)))

    def _is_dequantizable(self, name: str) -> bool:
        """On the device, by its stored blocks."""
        if not self._on_device:
            return False
        from hetero.prefill.kernels.dequantize import DEQUANTIZABLE

        return self._file.tensors[name].type in DEQUANTIZABLE
