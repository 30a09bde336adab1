"""Slices of several prompts packed one after the other: what one step computes.

Axes: T tokens of all spans.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hetero.prefill.attention import Attention
from hetero.prefill.span import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """`last_rows`: where in the batch the last tokens of prompts lie that end in it; `last_spans`
    are these tokens alone. Each plan is the attention's for its spans, None for no spans."""

    spans: Sequence[Span]
    tokens_T: torch.Tensor  # int64
    positions_T: torch.Tensor  # int32, as are the cells
    cells_T: torch.Tensor
    plan: Any
    last_rows: torch.Tensor
    last_plan: Any

    @property
    def num_tokens(self) -> int:
        return len(self.tokens_T)


def make_batch(
    spans: Sequence[Span],
    tokens: Sequence[Sequence[int]],
    is_last: Sequence[bool],
    attention: Attention,
    device: torch.device,
) -> Batch:
    """`tokens` and `is_last` (the span ends its prompt) per span."""
    positions = [np.arange(span.first, span.end, dtype=np.int32) for span in spans]
    cells = [
        np.arange(span.cell + span.first, span.cell + span.end, dtype=np.int32) for span in spans
    ]
    ends = np.cumsum([span.num_new for span in spans])
    last_spans = [
        Span(cell=span.cell, first=span.end - 1, end=span.end)
        for span, last in zip(spans, is_last, strict=True)
        if last
    ]

    def on_device(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(device)

    return Batch(
        spans=spans,
        tokens_T=on_device(np.concatenate([np.asarray(part, np.int64) for part in tokens])),
        positions_T=on_device(np.concatenate(positions)),
        cells_T=on_device(np.concatenate(cells)),
        plan=attention.plan(spans, device),
        last_rows=on_device(ends[np.asarray(is_last)] - 1),
        last_plan=attention.plan(last_spans, device) if last_spans else None,
    )
