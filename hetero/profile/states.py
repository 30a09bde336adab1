"""Long distinct contexts without long prefills: rows the model computed, drawn again and again.

A few tokens are really read; every state of any length is then made of their rows, drawn at random
with a seed of its own. Values are of the right size and kind (a step's time doesn't depend on
them otherwise), memory is distinct for every sequence, and what the model says is nonsense.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from hetero.kv.layout import KVLayout
from hetero.kv.rows import Kind, RowFrame
from hetero.kv.staging import StagingBlob, StateLayout, read_state
from hetero.kv.types import kv_type
from hetero.llama.batch import Batch
from hetero.llama.context import Context, ContextConfig
from hetero.llama.model import Model
from hetero.prefill.frame_plan import layer_groups, token_ranges
from hetero.profile.random_text import RandomText

_KINDS: tuple[Kind, Kind] = ("k", "v")
_NUM_READ = 16


class States:
    """Makes sequence states in one cache layout."""

    def __init__(self, model: Model, layout: KVLayout, *, num_threads: int) -> None:
        self.layout = layout
        tokens = RandomText(model.vocab.num_tokens).draw(_NUM_READ).tolist()
        config = ContextConfig(
            num_sequences=1,
            tokens_per_sequence=_NUM_READ,
            unified=True,
            k_ggml_type=kv_type(layout.k_type).ggml_id,
            v_ggml_type=kv_type(layout.v_type).ggml_id,
            num_threads=num_threads,
            batch_tokens=_NUM_READ,
        )
        with Context(model, config) as context:
            batch = Batch(_NUM_READ)
            batch.set_prompt(tokens, 0, 0, want_last=True)
            context.decode(batch)
            blob = context.export_sequence(0)
        state = read_state(blob, layout, range(_NUM_READ))
        self._rows = {
            kind: np.stack([state.rows(blob, kind, layer) for layer in range(layout.num_layers)])
            for kind in _KINDS
        }

    def make(self, num_tokens: int, num_streams: int, seed: int) -> npt.NDArray[np.uint8]:
        """A state of positions 0 to `num_tokens`, for a cache of `num_streams` streams."""
        drawn = np.random.default_rng(seed).integers(0, _NUM_READ, num_tokens)
        staging = StagingBlob(self.layout, num_tokens, num_streams)
        for kind in _KINDS:
            for layer in range(self.layout.num_layers):
                rows = self._rows[kind][layer : layer + 1, drawn]
                staging.place(_all_tokens(kind, layer, rows))
        return staging.blob


def _all_tokens(kind: Kind, layer: int, rows: npt.NDArray[np.uint8]) -> RowFrame:
    """rows: (1, tokens, row bytes)"""
    return RowFrame(
        kind=kind,
        first_layer=layer,
        end_layer=layer + 1,
        first_token=0,
        end_token=rows.shape[1],
        rows=rows,
    )


def state_frames(
    blob: npt.NDArray[np.uint8],
    layout: KVLayout,
    num_tokens: int,
    num_streams: int,
    *,
    chunk_tokens: int,
    frame_bytes: int,
) -> Iterator[RowFrame]:
    """A state cut into the frames a prefill node would have sent it in."""
    state = StateLayout(layout, num_tokens, num_streams)
    for first in range(0, num_tokens, chunk_tokens):
        end = min(first + chunk_tokens, num_tokens)
        for layers in layer_groups(layout, end - first, frame_bytes):
            for kind in _KINDS:
                token_bytes = len(layers) * layout.row_bytes(kind)
                for tokens in token_ranges(first, end, token_bytes, frame_bytes):
                    yield RowFrame(
                        kind=kind,
                        first_layer=layers.start,
                        end_layer=layers.stop,
                        first_token=tokens.start,
                        end_token=tokens.stop,
                        rows=np.stack(
                            [
                                state.rows(blob, kind, layer)[tokens.start : tokens.stop]
                                for layer in layers
                            ]
                        ),
                    )
