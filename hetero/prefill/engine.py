"""What every prefill engine offers: tokens in, cache rows out as they are computed, last logits."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hetero.kv.layout import KVLayout
from hetero.kv.rows import RowFrame


class PrefillRun(Protocol):
    """One prompt being read. Iterate to the end for its rows, then take the logits.

    Rows come chunk by chunk, within a chunk layer group by layer group, K and V apart; the tokens
    of each layer in ascending order without gaps. Iteration is where the computing happens;
    dropping the run stops it.
    """

    pack_s: float  # seconds spent on rotating and quantizing so far

    def __iter__(self) -> Iterator[RowFrame]: ...

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """(vocabulary,) of the last token; there once the iteration has ended."""


class PrefillEngine(Protocol):
    name: str  # "torch" or "llama"
    attention: str  # what computes attention: "sdpa", "triton", "llama"
    layout: KVLayout
    max_prompt_tokens: int
    chunk_tokens: int

    def start(self, tokens: Sequence[int], *, want_rows: bool = True) -> PrefillRun:
        """Begin a prompt. One run at a time. `want_rows=False` computes the logits alone."""

    def close(self) -> None: ...
