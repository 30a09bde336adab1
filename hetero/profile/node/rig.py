"""A llama.cpp cache that is filled at will, and steps on it that are timed.

Contexts are states made of a few tokens' rows (see `hetero.profile.states`), so filling one costs
a copy, not a prefill. What a step appends is removed again: a point can be timed many times.
"""

import ctypes
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hetero.kv.layout import KVLayout
from hetero.kv.types import kv_type
from hetero.llama.batch import Batch
from hetero.llama.context import Context, ContextConfig
from hetero.llama.library import Owned
from hetero.llama.model import Model
from hetero.llama.sampler import Sampler
from hetero.messages import Sampling
from hetero.prefill.llama_export import export_chunk
from hetero.profile.random_text import RandomText
from hetero.profile.states import States

# As an OpenAI client gets it by default; drawing from a large vocabulary is part of a step.
_SAMPLING = Sampling(ignore_eos=True)

# What the prefill engines aim at.
_FRAME_BYTES = 2 * 2**20


class StepRig(Owned):
    """One context of `num_sequences` sequences, as a node would have it."""

    def __init__(
        self,
        model: Model,
        layout: KVLayout,
        *,
        num_sequences: int,
        context_tokens: int,
        unified: bool,
        num_threads: int,
        chunk_tokens: int,
        states: States | None = None,
    ) -> None:
        """states: of the same model and layout, where they are made already."""
        self.layout = layout
        self.context = Context(
            model,
            ContextConfig(
                num_sequences=num_sequences,
                tokens_per_sequence=context_tokens,
                unified=unified,
                k_ggml_type=kv_type(layout.k_type).ggml_id,
                v_ggml_type=kv_type(layout.v_type).ggml_id,
                num_threads=num_threads,
                batch_tokens=max(chunk_tokens, num_sequences),
                num_scratch=int(unified),  # exports chunks
            ),
        )
        self.unified = unified
        self.num_sequences = num_sequences
        self.context_tokens = context_tokens
        self.chunk_tokens = chunk_tokens
        self._states = states or States(model, layout, num_threads=num_threads)
        self._batch = Batch(max(chunk_tokens, num_sequences))
        self._cells = [0] * num_sequences
        self._text = RandomText(model.vocab.num_tokens)
        self._samplers = [
            Sampler(model.vocab, _SAMPLING, sequence) for sequence in range(num_sequences)
        ]

    def close(self) -> None:
        for sampler in self._samplers:
            sampler.close()
        self.context.close()
        # A survey opens many: what glibc keeps of each would add up.
        _give_back_free_memory()

    def set_threads(self, num_threads: int) -> None:
        self.context.set_threads(num_threads)

    def hold(self, cells: Sequence[int]) -> None:
        """Give sequence i `cells[i]` cells, those after the last one none.

        A stream that is too short is restored in full, and shortened for nothing. Sequences of a
        unified cache lie one after another: where one changes, all after it are put back, since
        every row would scan the gap. Shortening the last one costs nothing.
        """
        need = [*cells, *[0] * (self.num_sequences - len(cells))]
        if self.unified:
            self._hold_in_pool(need)
        else:
            for sequence, num_cells in enumerate(need):
                if num_cells > self._cells[sequence]:
                    self._restore(sequence, self.context_tokens)
                self._shorten(sequence, num_cells)

    def restore_s(self, num_cells: int, sequence: int = 0) -> float:
        """Seconds to restore a state of so many cells, which the sequence holds from then on."""
        blob = self._state(num_cells, seed=sequence)
        started = time.perf_counter()
        self.context.restore_sequence(sequence, blob)
        seconds = time.perf_counter() - started
        self._cells[sequence] = num_cells
        return seconds

    def time_step(self, num_rows: int) -> float:
        """Seconds of one token for each of the first `num_rows` sequences, drawn and all."""
        batch, rows = self._batch, slice(num_rows)
        positions = self._cells[:num_rows]
        batch.num_rows = num_rows
        batch.tokens[rows] = self._text.draw(num_rows)
        batch.positions[rows] = positions
        batch.sequences[rows] = np.arange(num_rows)
        batch.wants_logits[rows] = 1
        started = time.perf_counter()
        self.context.decode(batch)
        for row, position in enumerate(positions):
            self._samplers[row].sample_row(self.context, row, position + 1)
        seconds = time.perf_counter() - started
        for sequence, position in enumerate(positions):
            self.context.remove_sequence(sequence, position, -1)
        return seconds

    def time_chunk(self, num_tokens: int, sequence: int = 0) -> float:
        """Seconds to read so many tokens of a prompt whose cells that sequence holds. In a unified
        cache, which is a prefill node's, with the export of their rows."""
        first = self._cells[sequence]
        tokens = self._text.draw(num_tokens).tolist()
        self._batch.set_prompt(tokens, first, sequence, want_last=True)
        started = time.perf_counter()
        self.context.decode(self._batch)
        self.context.logits(1)[0, 0]  # waits for a GPU
        if self.unified:
            self._export(sequence, range(first, first + num_tokens))
        seconds = time.perf_counter() - started
        self.context.remove_sequence(sequence, first, -1)
        _give_back_free_memory()  # an exported chunk's, before the next context is restored
        return seconds

    def _export(self, sequence: int, positions: range) -> None:
        chunk = export_chunk(self.context, self.layout, sequence, self.num_sequences, positions)
        for _ in chunk.frames(_FRAME_BYTES):
            pass

    def _hold_in_pool(self, need: Sequence[int]) -> None:
        changed = [i for i, have in enumerate(self._cells) if have != need[i]]
        if not changed:
            return
        first = changed[0]
        behind = range(first + 1, self.num_sequences)
        for sequence in behind:
            self._shorten(sequence, 0)
        if need[first] < self._cells[first]:
            self._shorten(first, need[first])
        else:
            self._restore(first, need[first])
        for sequence in behind:
            if need[sequence]:
                self._restore(sequence, need[sequence])

    def _shorten(self, sequence: int, num_cells: int) -> None:
        if num_cells == 0 < self._cells[sequence]:
            self.context.remove_sequence(sequence)
        elif num_cells < self._cells[sequence]:
            self.context.remove_sequence(sequence, num_cells, -1)
        self._cells[sequence] = num_cells

    def _restore(self, sequence: int, num_cells: int) -> None:
        self.context.restore_sequence(sequence, self._state(num_cells, seed=sequence))
        self._cells[sequence] = num_cells

    def _state(self, num_cells: int, *, seed: int) -> npt.NDArray[np.uint8]:
        return self._states.make(num_cells, self.context.config.num_streams, seed)


def _give_back_free_memory() -> None:
    """So that a profiler takes no more than the node that it stands for."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
