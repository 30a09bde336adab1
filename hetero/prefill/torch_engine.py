"""The torch prefill engine: slices of prompts in, packed rows out while later layers compute."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from hetero.errors import CodecError, EngineError
from hetero.kv.layout import KVLayout
from hetero.kv.rows import Kind, RowFrame
from hetero.prefill.attention import Attention
from hetero.prefill.batch import Batch, make_batch
from hetero.prefill.engine import PrefillRun, Slice, check_prompt
from hetero.prefill.frame_plan import layer_groups, token_ranges
from hetero.prefill.kv_pool import KVPool
from hetero.prefill.packing import PackedRows, Packer
from hetero.prefill.span import Span
from hetero.prefill.torch_model import TorchModel

# At 10 Gbit/s 1.7 ms of wire: the last frame is what the client waits for, and smaller ones would
# spend more on headers and wake-ups than they save.
DEFAULT_FRAME_BYTES = 2 * 2**20

# Layer groups launched before the rows of the first are waited for. One computes while another's
# rows are copied; the others are there so that the GPU never waits for Python to launch.
_GROUPS_AHEAD = 4


@dataclass(eq=False, kw_only=True)
class TorchRun(PrefillRun):
    """Its KV lies in the engine's pool from `cell` on."""

    cell: int


@dataclass(slots=True)
class _Group:
    """Packed rows of a few layers, on their way to host memory."""

    layers: range
    parts: list[tuple[TorchRun, range, Kind, PackedRows]] = field(default_factory=list)

    def is_ready(self) -> bool:
        return all(rows.is_ready() for *_, rows in self.parts)


class TorchEngine:
    """A `PrefillEngine`. Holds the weights and the pool; `torch_setup` makes one."""

    name = "torch"

    def __init__(
        self,
        model: TorchModel,
        pool: KVPool,
        packer: Packer,
        attention: Attention,
        layout: KVLayout,
        *,
        vocab_size: int,
        context_tokens: int,
        chunk_tokens: int,
        frame_bytes: int = DEFAULT_FRAME_BYTES,
    ) -> None:
        self.attention = attention.name
        self.layout = layout
        self.max_prompt_tokens = context_tokens
        self.chunk_tokens = chunk_tokens
        self.frame_bytes = frame_bytes
        self.dtype = pool.k_LCGD.dtype
        self._device = pool.k_LCGD.device
        self._model = model
        self._pool = pool
        self._packer = packer
        self._attention = attention
        self._vocab_size = vocab_size

    def has_room(self, num_tokens: int) -> bool:
        return self._pool.has_room(num_tokens)

    def start(self, tokens: Sequence[int], *, want_rows: bool = True) -> TorchRun:
        """Raises: ConfigError for tokens the model does not have, PlanError for too many."""
        check_prompt(tokens, self.max_prompt_tokens, self._vocab_size)
        return TorchRun(tokens=tokens, want_rows=want_rows, cell=self._pool.reserve(len(tokens)))

    def end(self, run: PrefillRun) -> None:
        assert isinstance(run, TorchRun)
        self._pool.free(run.cell)

    def close(self) -> None:
        """Let go of weights and pool."""
        del self._model, self._pool

    def read(self, slices: Sequence[Slice]) -> Iterator[tuple[PrefillRun, RowFrame]]:
        """See `PrefillEngine`. If memory runs out, the largest slice's run fails, and the others
        are read without it; what was handed out of them is not handed out again."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # each thread has its own current device
        reading = list(slices)
        # By the longest slice, so that many short ones make few frames; and once, so that what is
        # handed out before memory runs out is whole groups of what comes after.
        longest = max(piece.num_tokens for piece in slices)
        groups = layer_groups(self.layout, longest, self.frame_bytes)
        num_layers_out = 0
        while reading:
            try:
                for layers, frames in self._read(reading, groups, num_layers_out):
                    yield from frames
                    num_layers_out = layers.stop
                return
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                largest = max(reading, key=lambda piece: piece.num_tokens)
                largest.run.error = self._out_of_memory(largest, error)
                reading.remove(largest)
            # After the except clause: the exception held the frames that hold the tensors.
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _read(
        self, slices: Sequence[Slice], layer_groups: Sequence[range], num_layers_out: int
    ) -> Iterator[tuple[range, Iterator[tuple[PrefillRun, RowFrame]]]]:
        """The groups of one step, each with its frames, from layer `num_layers_out` on."""
        runs, batch = self._batch(slices)
        groups: deque[_Group] = deque()
        steps = self._model.layers(batch, self._pool)
        logits_NV = None
        for layers in layer_groups:
            for _ in layers:
                logits_NV = next(steps)
            if layers.start >= num_layers_out:
                groups.append(self._pack(layers, runs, batch))
            while groups and (len(groups) >= _GROUPS_AHEAD or groups[0].is_ready()):
                group = groups.popleft()
                yield group.layers, self._frames(group)
        for group in groups:
            yield group.layers, self._frames(group)
        self._finish(runs, batch, logits_NV)

    def _batch(self, slices: Sequence[Slice]) -> tuple[list[TorchRun], Batch]:
        runs: list[TorchRun] = []
        spans, tokens = [], []
        for piece in slices:
            run = piece.run
            assert isinstance(run, TorchRun)  # of this engine
            end = run.num_read + piece.num_tokens
            runs.append(run)
            spans.append(Span(cell=run.cell, first=run.num_read, end=end))
            tokens.append(run.tokens[run.num_read : end])
        is_last = [span.end == len(run.tokens) for run, span in zip(runs, spans, strict=True)]
        return runs, make_batch(spans, tokens, is_last, self._attention, self._device)

    def _pack(self, layers: range, runs: Sequence[TorchRun], batch: Batch) -> _Group:
        group = _Group(layers)
        pool = self._pool
        kinds: tuple[tuple[Kind, torch.Tensor], ...] = (("k", pool.k_LCGD), ("v", pool.v_LCGD))
        for run, span in zip(runs, batch.spans, strict=True):
            if not run.want_rows or run.error is not None:
                continue
            cells = slice(span.cell + span.first, span.cell + span.end)
            try:
                for kind, pool_LCGD in kinds:
                    values_LTGD = pool_LCGD[layers.start : layers.stop, cells]
                    rows = self._packer.pack(values_LTGD, kind, layers.start)
                    group.parts.append((run, range(span.first, span.end), kind, rows))
            except CodecError as error:
                run.error = error.with_traceback(None)  # which would hold on to the group
        return group

    def _frames(self, group: _Group) -> Iterator[tuple[PrefillRun, RowFrame]]:
        """Cut where a frame can't hold it all; a run whose rows are not finite ends here."""
        layers = group.layers
        for run, span, kind, packed in group.parts:
            if run.error is not None:
                continue
            try:
                rows = packed.rows()
            except CodecError as error:
                run.error = error.with_traceback(None)
                continue
            run.pack_s += packed.seconds()
            token_bytes = len(layers) * self.layout.row_bytes(kind)
            for tokens in token_ranges(span.start, span.stop, token_bytes, self.frame_bytes):
                yield (
                    run,
                    RowFrame(
                        kind=kind,
                        first_layer=layers.start,
                        end_layer=layers.stop,
                        first_token=tokens.start,
                        end_token=tokens.stop,
                        rows=rows[:, tokens.start - span.start : tokens.stop - span.start],
                    ),
                )

    def _finish(
        self, runs: Sequence[TorchRun], batch: Batch, logits_NV: torch.Tensor | None
    ) -> None:
        """Account for what is read now; only the last rows of logits leave the device."""
        ended = []
        for run, span in zip(runs, batch.spans, strict=True):
            run.num_read = span.end
            run.num_chunks += 1
            if span.end == len(run.tokens):
                ended.append(run)
        if logits_NV is None:
            return
        for run, logits in zip(ended, logits_NV.cpu().numpy(), strict=True):
            if run.error is None and not np.isfinite(logits).all():
                run.error = EngineError(
                    f"logits: need finite values, have inf or nan computing in {self.dtype}: "
                    "use bfloat16 or float32"
                )
            run.last_logits = logits

    def _out_of_memory(self, piece: Slice, error: RuntimeError) -> EngineError:
        have = "none"
        if self._device.type == "cuda":
            have = f"{torch.cuda.mem_get_info(self._device)[0] / 2**20:.0f} MiB"
        return EngineError(
            f"GPU memory: need more for {piece.num_tokens} tokens of a prompt, have {have} left "
            f"({str(error).split('.')[0].lower()}): another program may have taken it; try again, "
            "or use a smaller --chunk"
        )


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Torch's own error, or the words of cuBLAS, of Triton, or of the driver."""
    words = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "out of memory" in words
        or "alloc_failed" in words
    )
