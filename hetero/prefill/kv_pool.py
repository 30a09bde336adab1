"""The KV of the prompts being read: one tensor each for K and V, a run of cells per prompt.

A prompt's length is known when it arrives, so its cells lie together: no page table, and attention
reads long contiguous rows. What is freed is used again, the lowest fitting gap first.

Axes: L layers, C cells, G KV heads, D head_dim.
"""

import torch

from hetero.errors import EngineError


class KVPool:
    def __init__(
        self,
        *,
        num_layers: int,
        num_cells: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        # Not zeroed: cells are written before they are read, and on a CPU memory that was never
        # touched costs nothing.
        shape = (num_layers, num_cells, num_kv_heads, head_dim)
        self.k_LCGD = torch.empty(shape, dtype=dtype, device=device)
        self.v_LCGD = torch.empty(shape, dtype=dtype, device=device)
        self.num_cells = num_cells
        self._held: dict[int, int] = {}  # first cell -> number of cells

    @property
    def num_held(self) -> int:
        return sum(self._held.values())

    def has_room(self, num_cells: int) -> bool:
        return self._gap(num_cells) is not None

    def reserve(self, num_cells: int) -> int:
        """The first of `num_cells` consecutive cells.

        Raises: EngineError if no gap is that long.
        """
        cell = self._gap(num_cells)
        if cell is None:
            free = self.num_cells - self.num_held
            raise EngineError(
                f"KV pool: need {num_cells} consecutive cells, have {free} free of {self.num_cells}"
            )
        self._held[cell] = num_cells
        return cell

    def free(self, cell: int) -> None:
        del self._held[cell]

    def _gap(self, num_cells: int) -> int | None:
        """Where the lowest gap of at least `num_cells` begins."""
        end = 0
        for cell in sorted(self._held):
            if cell - end >= num_cells:
                return end
            end = cell + self._held[cell]
        return end if self.num_cells - end >= num_cells else None
