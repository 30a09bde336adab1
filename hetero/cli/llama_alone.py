"""The oracle of `hetero demo`: llama.cpp by itself, a bare loop over one context.

Nothing of hetero's nodes, transfers or caches takes part: the same model, KV types and chunks.
"""

from pathlib import Path

from hetero.kv.types import kv_type
from hetero.llama.batch import Batch
from hetero.llama.context import Context, ContextConfig
from hetero.llama.model import Model


def greedy_tokens(
    path: Path,
    prompt: list[int],
    *,
    max_tokens: int,
    kv_k: str,
    kv_v: str,
    chunk_tokens: int,
    num_threads: int,
) -> list[int]:
    """What llama.cpp generates after `prompt`, up to its end token, which is not included."""
    config = ContextConfig(
        num_sequences=1,
        tokens_per_sequence=len(prompt) + max_tokens,
        unified=False,
        k_ggml_type=kv_type(kv_k).ggml_id,
        v_ggml_type=kv_type(kv_v).ggml_id,
        num_threads=num_threads,
        batch_tokens=chunk_tokens,
    )
    batch = Batch(chunk_tokens)
    tokens: list[int] = []
    with Model(path) as model, Context(model, config) as context:
        new, position = prompt, 0
        while True:
            for first in range(0, len(new), chunk_tokens):
                chunk = new[first : first + chunk_tokens]
                batch.set_prompt(chunk, position, 0, want_last=True)
                context.decode(batch)
                position += len(chunk)
            token = int(context.logits(1)[0].argmax())
            if token in model.vocab.end_tokens:
                return tokens
            tokens.append(token)
            if len(tokens) == max_tokens:
                return tokens
            new = [token]
