"""How many experts a decode step wakes: those that any row of the batch is routed to.

Rows go on with different passages, as requests of different users would. Where each row is routed
does not depend on the others, so smaller batches are parts of the same steps.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from hetero.errors import EngineError
from hetero.kv.types import kv_type
from hetero.llama.batch import Batch
from hetero.llama.context import Context, ContextConfig
from hetero.llama.experts import RoutedExperts
from hetero.llama.model import Model
from hetero.model.spec import ModelSpec
from hetero.profile.node_profile import ExpertUnion

# Prose, letters, code, logs, four languages: ours, and paragraphs of about forty words.
_PASSAGES = Path(__file__).with_name("passages.txt")

# A passage's first tokens are read as a prompt, those after it decoded one by one.
_NUM_READ = 16
_NUM_STEPS = 12


def measure_experts(
    model: Model, spec: ModelSpec, *, num_sequences: int, num_threads: int, is_random: bool
) -> ExpertUnion | None:
    """None for dense models. num_sequences: the most rows of a step. is_random: of weights that
    were never trained, whose router says nothing of text.

    Raises: EngineError if llama.cpp does not tell where rows are routed.
    """
    if not spec.num_experts:
        return None
    passages = _passages(model, num_sequences)
    layers = _routes(model, passages, num_threads)
    if not layers:
        raise EngineError(f"{spec.architecture}: need the layers' routing, have none told")
    rows = _batch_sizes(len(passages))
    return ExpertUnion(
        source="estimated" if is_random else "measured",
        num_experts=spec.num_experts,
        num_used=layers[0].shape[2],
        rows=rows,
        experts=[mean_union(layers, size, spec.num_experts) for size in rows],
    )


def mean_union(layers: list[npt.NDArray[np.int32]], num_rows: int, num_experts: int) -> float:
    """Distinct experts of `num_rows` rows, over all steps, layers and parts of so many rows.

    Shapes: for each layer (steps, rows, experts of a row)
    """
    counts = []
    for ids in layers:
        is_woken = (ids[..., None] == np.arange(num_experts)).any(axis=2)
        num_parts = ids.shape[1] // num_rows
        parts = is_woken[:, : num_parts * num_rows].reshape(len(ids), num_parts, num_rows, -1)
        counts.append(parts.any(axis=2).sum(axis=2).mean())
    return float(np.mean(counts))


def _passages(model: Model, num_sequences: int) -> list[list[int]]:
    """As many as there are rows, or as we have."""
    texts = _PASSAGES.read_text(encoding="utf-8").strip().split("\n\n")[:num_sequences]
    return [
        model.vocab.tokenize(text, add_special=True, parse_special=False)[: _NUM_READ + _NUM_STEPS]
        for text in texts
    ]


def _routes(
    model: Model, passages: list[list[int]], num_threads: int
) -> list[npt.NDArray[np.int32]]:
    """(steps, passages, experts of a row) of each layer that has experts."""
    num_rows = len(passages)
    steps: dict[int, list[npt.NDArray[np.int32]]] = {}
    routed = RoutedExperts()
    config = ContextConfig(
        num_sequences=num_rows,
        tokens_per_sequence=_NUM_READ + _NUM_STEPS,
        unified=True,  # in streams a batch may be cut into several
        k_ggml_type=kv_type("f16").ggml_id,
        v_ggml_type=kv_type("f16").ggml_id,
        num_threads=num_threads,
        batch_tokens=max(_NUM_READ, num_rows),
    )
    batch = Batch(config.batch_tokens)
    with Context(model, config, routed) as context:
        for sequence, tokens in enumerate(passages):
            batch.set_prompt(tokens[:_NUM_READ], 0, sequence, want_last=True)
            context.decode(batch)
        routed.take()
        batch.num_rows = num_rows
        batch.sequences[:num_rows] = np.arange(num_rows)
        batch.wants_logits[:num_rows] = 1
        for position in range(_NUM_READ, min(map(len, passages))):
            batch.positions[:num_rows] = position
            batch.tokens[:num_rows] = [tokens[position] for tokens in passages]
            context.decode(batch)
            for layer, ids in routed.take().items():
                steps.setdefault(layer, []).append(ids)
    return [np.stack(taken) for taken in steps.values()]


def _batch_sizes(num_rows: int) -> list[int]:
    """1, 2, 4, 8 ... and the largest."""
    return sorted({1 << bits for bits in range(num_rows.bit_length())} | {num_rows})
