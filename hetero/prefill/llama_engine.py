"""Prefill by llama.cpp itself: any architecture, any device, bit for bit its own rows.

The cache is unified, because only there can a chunk be exported.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from hetero.kv.layout import KVLayout
from hetero.kv.probe import probe_state_format
from hetero.kv.rows import RowFrame
from hetero.kv.types import kv_type
from hetero.llama.batch import Batch
from hetero.llama.context import Context, ContextConfig
from hetero.llama.load_mode import LoadMode
from hetero.llama.model import Model
from hetero.prefill.engine import PrefillRun, Slice, check_prompt
from hetero.prefill.llama_export import export_chunk

_PROMPT, _SCRATCH = 0, 1


class LlamaEngine:
    """A `PrefillEngine` of one context, one prompt at a time."""

    name = "llama"
    attention = "llama"

    def __init__(
        self,
        path: Path,
        layout: KVLayout,
        *,
        context_tokens: int,
        num_threads: int,
        chunk_tokens: int = 512,
        frame_bytes: int = 2 * 2**20,
        gpu_layers: int = 0,
        load: LoadMode = "read",
    ) -> None:
        self.layout = layout
        self.chunk_tokens = chunk_tokens
        self.frame_bytes = frame_bytes
        config = ContextConfig(
            num_sequences=1,
            tokens_per_sequence=context_tokens,
            num_scratch=1,
            unified=True,
            k_ggml_type=kv_type(layout.k_type).ggml_id,
            v_ggml_type=kv_type(layout.v_type).ggml_id,
            num_threads=num_threads,
            batch_tokens=chunk_tokens,
        )
        # Weights that a GPU has no room for a context beside are given back.
        with ExitStack() as opened:
            self._model = opened.enter_context(Model(path, gpu_layers=gpu_layers, load=load))
            self.context = opened.enter_context(Context(self._model, config))
            probe_state_format(self._model, self.context, layout)
            self._opened = opened.pop_all()
        self.max_prompt_tokens = context_tokens
        self.batch = Batch(chunk_tokens)
        self._run: PrefillRun | None = None

    def close(self) -> None:
        self._opened.close()

    def has_room(self, num_tokens: int) -> bool:
        """One prompt at a time: beside another's cells its attention would round differently."""
        return self._run is None

    def start(self, tokens: Sequence[int], *, want_rows: bool = True) -> PrefillRun:
        check_prompt(tokens, self.max_prompt_tokens, self._model.vocab.num_tokens)
        assert self._run is None, "start() without room"
        self._run = PrefillRun(tokens=tokens, want_rows=want_rows)
        return self._run

    def end(self, run: PrefillRun) -> None:
        self.context.remove_sequence(_PROMPT)
        self._run = None

    def read(self, slices: Sequence[Slice]) -> Iterator[tuple[PrefillRun, RowFrame]]:
        (piece,) = slices  # there is room for one run
        run, first = piece.run, piece.run.num_read
        end = first + piece.num_tokens
        is_last = end == len(run.tokens)
        self.batch.set_prompt(run.tokens[first:end], first, _PROMPT, want_last=is_last)
        self.context.decode(self.batch)
        if run.want_rows:
            started = time.perf_counter()
            chunk = export_chunk(self.context, self.layout, _PROMPT, _SCRATCH, range(first, end))
            run.pack_s += time.perf_counter() - started  # llama.cpp packs as it computes
            for frame in chunk.frames(self.frame_bytes):
                yield run, frame
        if is_last:
            run.last_logits = self.context.logits(1)[0].copy()
        run.num_read = end
        run.num_chunks += 1
