"""The embedding and output matrices: whole, or as stored in the file and dequantized in use.

A prompt needs a few rows of the one and one product with the other, so their stored blocks do in
place of a gigabyte or two of 16-bit values.

Axes: T tokens, V vocabulary, E hidden, N rows, B bytes of a stored row.
"""

from dataclasses import dataclass

import gguf
import torch
import torch.nn.functional as F

# Rows of the output matrix dequantized at a time: 64 MiB at 4096 values of 16 bits.
_TILE_ROWS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseVocabulary:
    weight_VE: torch.Tensor
    bias_V: torch.Tensor | None = None

    def rows(self, tokens_T: torch.Tensor) -> torch.Tensor:
        return F.embedding(tokens_T, self.weight_VE)

    def logits(self, x_NE: torch.Tensor) -> torch.Tensor:
        return F.linear(x_NE, self.weight_VE, self.bias_V).float()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVocabulary:
    """Blocks as they are in the file, on the device that computes; values of `dtype`."""

    blocks_VB: torch.Tensor
    kind: gguf.GGMLQuantizationType
    hidden_size: int
    dtype: torch.dtype
    bias_V: torch.Tensor | None = None

    def rows(self, tokens_T: torch.Tensor) -> torch.Tensor:
        return self._dequantized(self.blocks_VB[tokens_T])

    def logits(self, x_NE: torch.Tensor) -> torch.Tensor:
        logits_NV = torch.cat(
            [
                F.linear(x_NE, self._dequantized(blocks)).float()
                for blocks in self.blocks_VB.split(_TILE_ROWS)
            ],
            dim=1,
        )
        return logits_NV if self.bias_V is None else logits_NV.add_(self.bias_V)

    def _dequantized(self, blocks_NB: torch.Tensor) -> torch.Tensor:
        from hetero.prefill.kernels.dequantize import dequantize

        values_NE = torch.empty(
            (len(blocks_NB), self.hidden_size), dtype=self.dtype, device=blocks_NB.device
        )
        dequantize(blocks_NB, self.kind, values_NE)
        return values_NE
