"""The least a program can do around llama.cpp: fill a batch, decode, pick each row's best token.

A ceiling for our own loop, so it goes to the bindings directly: through `hetero.llama` it would
share our faults. Parameters are the library's defaults but for what both must have in common.
"""

import ctypes

import llama_cpp
import numpy as np
import numpy.typing as npt

from hetero.errors import EngineError
from hetero.experiment.engine_bench.driven_engine import FIRST_TOKEN
from hetero.kv.layout import KVLayout
from hetero.kv.types import kv_type
from hetero.llama.context import FLASH_ATTENTION_ON
from hetero.llama.library import Owned
from hetero.llama.model import Model

_BATCH_TOKENS = 512


class BareLoop(Owned):
    """Sequences 0 to n - 1 of one context, all decoded in every step."""

    def __init__(
        self,
        model: Model,
        layout: KVLayout,
        *,
        num_sequences: int,
        tokens_per_sequence: int,
        unified: bool,
        num_threads: int,
    ) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = num_sequences * tokens_per_sequence
        params.n_batch = params.n_ubatch = _BATCH_TOKENS
        # The default holds logits for every token of a batch: 260 MB at a 128k vocabulary.
        params.n_outputs_max = num_sequences
        params.n_seq_max = num_sequences
        params.n_threads = params.n_threads_batch = num_threads
        params.flash_attn_type = FLASH_ATTENTION_ON
        params.type_k = kv_type(layout.k_type).ggml_id
        params.type_v = kv_type(layout.v_type).ggml_id
        params.kv_unified = unified
        self._context = llama_cpp.llama_init_from_model(model.pointer, params)
        if not self._context:
            raise EngineError("bare loop: llama.cpp can't make its context")
        self.num_streams = 1 if unified else num_sequences
        self._sampler = llama_cpp.llama_sampler_init_greedy()
        self._batch = llama_cpp.llama_batch_init(num_sequences, 0, 1)
        for row in range(num_sequences):
            self._batch.n_seq_id[row] = 1
            self._batch.seq_id[row][0] = row
            self._batch.logits[row] = 1
        self.tokens = [FIRST_TOKEN] * num_sequences  # that the next step feeds
        self._positions = [0] * num_sequences

    def restore(self, sequence: int, blob: npt.NDArray[np.uint8], num_tokens: int) -> None:
        pointer = blob.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        read = llama_cpp.llama_state_seq_set_data(self._context, pointer, blob.nbytes, sequence)
        if read != blob.nbytes:
            raise EngineError(f"bare loop: need {blob.nbytes} bytes restored, have {read}")
        self._positions[sequence] = num_tokens

    def step(self, num_rows: int) -> None:
        """One token for each of the first `num_rows` sequences."""
        batch, tokens, positions = self._batch, self.tokens, self._positions
        batch.n_tokens = num_rows
        for row in range(num_rows):
            batch.token[row] = tokens[row]
            batch.pos[row] = positions[row]
        status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            raise EngineError(f"bare loop: llama_decode failed with status {status}")
        for row in range(num_rows):
            tokens[row] = llama_cpp.llama_sampler_sample(self._sampler, self._context, row)
            positions[row] += 1

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_sampler_free(self._sampler)
        llama_cpp.llama_free(self._context)
