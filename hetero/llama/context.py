"""A llama.cpp context: decode steps, their logits, and the state of single sequences.

Not thread-safe: every call on one context must come from one thread at a time. State blobs are
opaque here; `hetero.kv.staging` knows their layout.
"""

import ctypes
from dataclasses import dataclass

import llama_cpp
import numpy as np
import numpy.typing as npt

from hetero.errors import EngineError, PlanError
from hetero.llama.batch import Batch
from hetero.llama.experts import RoutedExperts
from hetero.llama.library import Owned, captured_log, set_fields
from hetero.llama.model import Model

FLASH_ATTENTION_ON = 1  # a quantized V needs it, and V is stored untransposed with it

# Above this llama.cpp refuses a context.
MAX_SEQUENCES = 256


@dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """What a context holds: `num_sequences` of up to `tokens_per_sequence` cells each.

    unified: one cell pool for all sequences (needed to export or restore token ranges), instead
    of a stream of cells each, in which attention never scans another sequence's cells.
    num_scratch: sequences more, that share the others' cells in a pool.
    num_logits: rows of a batch that may want theirs; None: one for each sequence, for one at most
    is sampled. llama.cpp's default reserves memory for all of them.
    """

    num_sequences: int
    tokens_per_sequence: int
    unified: bool
    k_ggml_type: int  # enum ggml_type of the cache's K rows
    v_ggml_type: int
    num_threads: int
    batch_tokens: int = 512
    num_scratch: int = 0
    num_logits: int | None = None

    @property
    def num_streams(self) -> int:
        return 1 if self.unified else self.num_sequences


class Context(Owned):
    """An owned llama_context over a model that outlives it."""

    def __init__(
        self, model: Model, config: ContextConfig, routed: RoutedExperts | None = None
    ) -> None:
        """routed: is told which experts every row goes to."""
        num_sequences = config.num_sequences + config.num_scratch
        if not 1 <= num_sequences <= MAX_SEQUENCES:
            raise PlanError(
                f"llama.cpp context: need 1 to {MAX_SEQUENCES} sequences, have {num_sequences}"
            )
        self.config = config
        self.vocab = model.vocab
        params = llama_cpp.llama_context_default_params()
        set_fields(
            params,
            n_ctx=config.num_sequences * _padded(config.tokens_per_sequence),
            n_batch=config.batch_tokens,
            n_ubatch=config.batch_tokens,
            n_seq_max=num_sequences,
            n_outputs_max=config.num_logits or num_sequences,
            n_threads=config.num_threads,
            n_threads_batch=config.num_threads,
            flash_attn_type=FLASH_ATTENTION_ON,
            type_k=config.k_ggml_type,
            type_v=config.v_ggml_type,
            kv_unified=config.unified,
            no_perf=True,
        )
        if routed is not None:
            set_fields(params, cb_eval=routed.callback)
        self._routed = routed  # llama.cpp calls it as long as the context lives
        with captured_log() as errors:
            self.pointer = llama_cpp.llama_init_from_model(model.pointer, params)
        if not self.pointer:
            reason = errors[0] if errors else "no reason given"
            raise EngineError(f"{model.path}: llama.cpp can't make a context: {reason}")
        self._memory = llama_cpp.llama_get_memory(self.pointer)
        self.tokens_per_sequence = _padded(config.tokens_per_sequence)

    def close(self) -> None:
        if self.pointer:
            llama_cpp.llama_free(self.pointer)
            self.pointer = None

    def set_threads(self, num_threads: int) -> None:
        """From the next decode on."""
        llama_cpp.llama_set_n_threads(self.pointer, num_threads, num_threads)

    def decode(self, batch: Batch) -> None:
        """Compute a batch and append its rows to the cache.

        Raises: PlanError when no cells are free, EngineError for anything else.
        """
        status = llama_cpp.llama_decode(self.pointer, batch.struct())
        if status == 1:
            raise PlanError(f"KV cache: need {batch.num_rows} free cells, have fewer")
        if status != 0:
            raise EngineError(f"llama_decode failed with status {status}")

    def logits(self, num_rows: int) -> npt.NDArray[np.float32]:
        """(rows that wanted logits, vocabulary), a view that lasts until the next decode."""
        pointer = llama_cpp.llama_get_logits(self.pointer)
        return np.ctypeslib.as_array(pointer, (num_rows, self.vocab.num_tokens))

    def row_logits(self, row: int) -> npt.NDArray[np.float32]:
        """(vocabulary,) of one batch row that wanted logits; lasts until the next decode."""
        pointer = llama_cpp.llama_get_logits_ith(self.pointer, row)
        return np.ctypeslib.as_array(pointer, (self.vocab.num_tokens,))

    def export_sequence(self, sequence: int) -> npt.NDArray[np.uint8]:
        """The sequence's state as llama.cpp writes it."""
        size = llama_cpp.llama_state_seq_get_size(self.pointer, sequence)
        blob = np.empty(size, np.uint8)
        written = llama_cpp.llama_state_seq_get_data(self.pointer, _bytes(blob), size, sequence)
        if written != size:
            raise EngineError(f"sequence {sequence}: need {size} bytes exported, have {written}")
        return blob

    def restore_sequence(self, sequence: int, blob: npt.NDArray[np.uint8]) -> None:
        """Replace a sequence by a state blob; on failure the sequence is left empty."""
        with captured_log() as errors:
            read = llama_cpp.llama_state_seq_set_data(
                self.pointer, _bytes(blob), blob.nbytes, sequence
            )
        if read != blob.nbytes:
            reason = f": {errors[0]}" if errors else ""
            raise EngineError(
                f"sequence {sequence}: need {blob.nbytes} bytes restored, have {read}{reason}"
            )

    def copy_sequence(self, source: int, target: int, first: int = -1, end: int = -1) -> None:
        """Give `target` the cells of positions [first, end). Free of cost in a unified cache;
        between streams whole sequences only, and every cell of the stream is copied."""
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, first, end)

    def remove_sequence(self, sequence: int, first: int = -1, end: int = -1) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, first, end)

    def last_position(self, sequence: int) -> int | None:
        position = llama_cpp.llama_memory_seq_pos_max(self._memory, sequence)
        return None if position < 0 else position


def _bytes(array: npt.NDArray[np.uint8]) -> object:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def _padded(num_tokens: int) -> int:
    """llama.cpp rounds a sequence's cells up to 256."""
    return -(-num_tokens // 256) * 256
