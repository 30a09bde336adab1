"""llama.cpp on its own: the reference that handed-over sequences are compared with."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np

from hetero.kv.types import kv_type
from hetero.llama.batch import Batch
from hetero.llama.context import Context, ContextConfig
from hetero.llama.model import Model


class Reference:
    """A bare greedy loop over one context, with a chosen chunk schedule and cache mode."""

    def __init__(
        self,
        path: Path,
        *,
        k_type="f16",
        v_type="f16",
        unified=True,
        num_sequences=2,
        context_tokens=1024,
        chunk_tokens=512,
    ):
        self._stack = ExitStack()
        self.model = self._stack.enter_context(Model(path))
        config = ContextConfig(
            num_sequences=num_sequences,
            tokens_per_sequence=context_tokens,
            unified=unified,
            k_ggml_type=kv_type(k_type).ggml_id,
            v_ggml_type=kv_type(v_type).ggml_id,
            num_threads=1,
            batch_tokens=chunk_tokens,
        )
        self.context = self._stack.enter_context(Context(self.model, config))
        self.batch = Batch(chunk_tokens)
        self.chunk_tokens = chunk_tokens

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._stack.close()

    def prefill(self, tokens, sequence=0):
        """Logits of the last token, as a copy."""
        for first in range(0, len(tokens), self.chunk_tokens):
            chunk = tokens[first : first + self.chunk_tokens]
            last = first + len(chunk) == len(tokens)
            self.batch.set_prompt(chunk, first, sequence, want_last=last)
            self.context.decode(self.batch)
        return self.context.logits(1)[0].copy()

    def step(self, token, position, sequence=0):
        self.batch.set_prompt([token], position, sequence, want_last=True)
        self.context.decode(self.batch)
        return self.context.logits(1)[0].copy()

    def greedy(self, logits, position, steps, sequence=0):
        """`steps` tokens from `logits` on, and the logits each was chosen from."""
        tokens, rows = [int(logits.argmax())], [logits]
        while len(tokens) < steps:
            rows.append(self.step(tokens[-1], position + len(tokens) - 1, sequence))
            tokens.append(int(rows[-1].argmax()))
        return tokens, rows


def random_prompt(num_tokens, vocab=512, seed=1):
    return np.random.default_rng(seed).integers(3, vocab, num_tokens).tolist()
