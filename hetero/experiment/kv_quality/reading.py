"""Passages through llama.cpp's cache, and the logits of what is scored."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from hetero.experiment.kv_quality.passages import Branch, Passage
from hetero.llama.batch import Batch
from hetero.llama.context import Context, ContextConfig
from hetero.llama.model import Model

# Tokens of a batch, as the other recipes set it. Both caches are read in the same batches, for
# llama.cpp differs from itself where batches differ.
CHUNK_TOKENS = 256

_SEQUENCE = 0


def open_context(
    model: Model,
    passages: Sequence[Passage],
    *,
    k_ggml_type: int,
    v_ggml_type: int,
    num_threads: int,
) -> Context:
    """With room for the longest of the passages."""
    config = ContextConfig(
        num_sequences=1,
        tokens_per_sequence=max(passage.num_tokens for passage in passages),
        unified=False,
        k_ggml_type=k_ggml_type,
        v_ggml_type=v_ggml_type,
        num_threads=num_threads,
        batch_tokens=CHUNK_TOKENS,
        num_logits=CHUNK_TOKENS,
    )
    return Context(model, config)


def read_context(context: Context, passage: Passage) -> None:
    """In place of what was read before."""
    context.remove_sequence(_SEQUENCE)
    for _ in _read(context, passage.context, 0, len(passage.context)):
        pass


def branch_logits(
    context: Context, passage: Passage, branch: Branch
) -> Iterator[npt.NDArray[np.float32]]:
    """Logits (rows, vocabulary) of the scored tokens, batch by batch; each lasts until the next."""
    start = len(passage.context)
    together = branch.tokens[: min(branch.num_together, len(branch.tokens) - 1)]
    yield from _read(context, together, start, branch.first_scored)
    for index in range(len(together), len(branch.tokens) - 1):
        yield from _read(context, branch.tokens[index : index + 1], start + index, 0)
    context.remove_sequence(_SEQUENCE, start)


def _read(
    context: Context, tokens: Sequence[int], position: int, first_wanted: int
) -> Iterator[npt.NDArray[np.float32]]:
    batch = Batch(CHUNK_TOKENS)
    for first in range(0, len(tokens), CHUNK_TOKENS):
        part = tokens[first : first + CHUNK_TOKENS]
        batch.set_prompt(part, position + first, _SEQUENCE, want_last=False)
        unwanted = min(max(first_wanted - first, 0), len(part))
        batch.wants_logits[unwanted : len(part)] = 1
        context.decode(batch)
        if unwanted < len(part):
            yield context.logits(len(part) - unwanted)
