"""How well the file recalls, as llama.cpp runs it, for each type of its KV cache.

Every question is put to a chat over one list: the list is read once, and each question and its
answer are decoded behind it and forgotten again.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from demo_model.vocabulary import ASSISTANT, BOS, END, USER
from hetero.kv.types import kv_type
from hetero.llama.batch import Batch
from hetero.llama.context import Context, ContextConfig
from hetero.llama.model import Model
from hetero.model.demo import recall_prompt

BATCH_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Recall:
    """What one cache type gives. A margin is the right token's logit less the highest other one.
    KL divergences are in nats, against f16, over all tokens of all answers."""

    k_type: str
    v_type: str
    num_pairs: int
    num_questions: int
    recall: float  # share of answers right in every token
    margin_worst: float  # over all tokens of all answers
    value_margin_worst: float
    value_margin_median: float
    kl_mean: float
    kl_worst: float


def evaluate(
    path: Path,
    num_pairs: int,
    type_pairs: list[tuple[str, str]],
    *,
    num_lists: int,
    questions_per_list: int,
    num_threads: int,
) -> list[Recall]:
    """Recall for each (K type, V type); all get the same questions."""
    rows = []
    with Model(path) as model:
        reference = None
        for k_type, v_type in [("f16", "f16"), *type_pairs]:
            config = ContextConfig(
                num_sequences=1,
                tokens_per_sequence=4 * num_pairs + 64,
                unified=True,
                k_ggml_type=kv_type(k_type).ggml_id,
                v_ggml_type=kv_type(v_type).ggml_id,
                num_threads=num_threads,
                batch_tokens=BATCH_TOKENS,
            )
            with Context(model, config) as context:
                answers = [
                    answer
                    for seed in range(num_lists)
                    for answer in _ask(context, num_pairs, seed, questions_per_list)
                ]
            logits_QAV = np.stack([logits for _, logits in answers]).astype(np.float64)
            expected_QA = np.array([tokens for tokens, _ in answers])
            if reference is None:
                reference = logits_QAV
                continue
            rows.append(_recall(k_type, v_type, num_pairs, logits_QAV, expected_QA, reference))
    return rows


def _ask(
    context: Context, num_pairs: int, seed: int, num_questions: int
) -> list[tuple[list[int], npt.NDArray[np.float32]]]:
    """Expected tokens of each answer, and the logits (answer tokens, V) they are judged by.

    The logits follow the expected tokens, not the sampled ones: greedy decoding gives the answer
    exactly when each expected token is the highest."""
    answers = []
    context.remove_sequence(0)
    list_end = 0
    asked = np.random.default_rng(seed).choice(
        num_pairs, num_questions, replace=num_questions > num_pairs
    )
    for question in asked:
        task = recall_prompt(num_pairs, seed, question=int(question))
        content = _words(context, task.content)
        prompt = [BOS, USER, *content, END, ASSISTANT]
        answer = [*_words(context, task.answer), END]
        if not list_end:
            list_end = 2 + 4 * num_pairs
            _read(context, prompt[:list_end], 0)
        rows = [_read(context, prompt[list_end:], list_end)]
        for i, token in enumerate(answer[:-1]):
            rows.append(_read(context, [token], len(prompt) + i))
        context.remove_sequence(0, list_end)
        answers.append((answer, np.stack(rows)))
    return answers


def _words(context: Context, text: str) -> list[int]:
    return context.vocab.tokenize(text, add_special=False, parse_special=False)


def _read(context: Context, tokens: list[int], position: int) -> npt.NDArray[np.float32]:
    """Decode consecutive tokens; the last one's logits."""
    batch = Batch(BATCH_TOKENS)
    for first in range(0, len(tokens), BATCH_TOKENS):
        part = tokens[first : first + BATCH_TOKENS]
        batch.set_prompt(part, position + first, 0, want_last=True)
        context.decode(batch)
    return context.logits(1)[0].copy()


def _recall(
    k_type: str,
    v_type: str,
    num_pairs: int,
    logits_QAV: npt.NDArray[np.float64],
    expected_QA: npt.NDArray[np.int64],
    reference_QAV: npt.NDArray[np.float64],
) -> Recall:
    right_Q = (logits_QAV.argmax(-1) == expected_QA).all(-1)
    expected_QA1 = expected_QA[:, :, None]
    others_QAV = logits_QAV.copy()
    np.put_along_axis(others_QAV, expected_QA1, -np.inf, -1)
    margin_QA = np.take_along_axis(logits_QAV, expected_QA1, -1)[..., 0] - others_QAV.max(-1)
    value_margin_Q = margin_QA[:, -2]  # the answer ends in the value and <|end|>
    kl_QA = _kl(reference_QAV, logits_QAV)
    return Recall(
        k_type=k_type,
        v_type=v_type,
        num_pairs=num_pairs,
        num_questions=len(right_Q),
        recall=float(right_Q.mean()),
        margin_worst=float(margin_QA.min()),
        value_margin_worst=float(value_margin_Q.min()),
        value_margin_median=float(np.median(value_margin_Q)),
        kl_mean=float(kl_QA.mean()),
        kl_worst=float(kl_QA.max()),
    )


def _kl(
    reference: npt.NDArray[np.float64], logits: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """KL(reference || logits) over the last axis."""
    log_p, log_q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (reference, logits))
    return np.asarray((np.exp(log_p) * (log_p - log_q)).sum(-1))
