"""Arms of a kv-quality recipe: one pair of K and V types after the other, on one loaded model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from hetero.errors import ConfigError
from hetero.experiment.figures import Say
from hetero.experiment.kv_quality.needles import needle_passages
from hetero.experiment.kv_quality.passages import (
    LIST_VALUE,
    Passage,
    draws,
    read_text,
    recall_passages,
    text_passages,
)
from hetero.experiment.kv_quality.reading import branch_logits, open_context, read_context
from hetero.experiment.kv_quality.reference import REFERENCE_TYPE, write_reference
from hetero.experiment.kv_quality.scoring import Scores, joined, score
from hetero.experiment.outcome.measured import Measured
from hetero.experiment.recipe.recipe import Quality, QualitySettings
from hetero.kv.layout import KVLayout, model_layout
from hetero.kv.types import kv_type
from hetero.launch.cores import num_usable_cores
from hetero.llama.context import Context
from hetero.llama.model import Model
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import gguf_to_spec


@dataclass(frozen=True)
class _Prompts:
    """Of one repetition, and the logits they give with an unquantized cache."""

    key: tuple[int, int, int]  # repetition, prompts, tokens
    questions: list[Passage]
    windows: list[Passage]
    reference_RV: npt.NDArray[np.float32]

    @property
    def passages(self) -> list[Passage]:
        return [*self.questions, *self.windows]


class KVQuality:
    """A model, its texts, and the logits of its unquantized cache, for all arms of a run."""

    def __init__(self, recipe: Quality, path: Path, num_threads: int | None = None) -> None:
        """path: of the recipe's model. Threads: every arm's; None for as many as an engine gets.

        Raises: ConfigError or ModelError naming the file that can't be used.
        """
        self._seed = recipe.seed
        self._is_demo = recipe.model.demo
        self._spec = gguf_to_spec(GGUFFile.open(path))
        self._num_threads = num_threads or num_usable_cores()
        self._model = Model(path)
        try:
            self._texts = [read_text(self._model.vocab, Path(text)) for text in recipe.texts]
        except ConfigError:
            self._model.close()
            raise
        self._folder = TemporaryDirectory(prefix="hetero-kv-quality-")
        self._prompts: _Prompts | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._prompts = None
        self._folder.cleanup()
        self._model.close()

    def measure(self, settings: QualitySettings, repetition: int, say: Say) -> Measured:
        """Recall of the demo model's lists, by another model of codes hidden in the texts; and KL
        divergence on the texts, or without texts on the values in the answers about the lists: what
        stands before them repeats the question.

        settings.prompts: lists, with 16 questions each; or windows of text, and as many codes.

        scalars: recall_share (of questions), same_top (share of the scored positions where both
        caches call the same token most likely), compared_positions, kv_bytes_per_token;
        k_rotation and v_rotation (values that llama.cpp rotates together before it quantizes them;
        0: none); with texts perplexity, and perplexity_ratio to that of the unquantized cache.
        samples: kld in nats, of each position; recall, 1 or 0 for each question; margin of the
        question's answer: of the token least sure, the right logit less the highest other one.

        Raises: ConfigError or ModelError for types that this cache can't have.
        """
        layout = model_layout(self._spec, settings.k, settings.v)
        prompts = self._prompts_for(settings, repetition, say)
        with open_context(
            self._model,
            prompts.passages,
            k_ggml_type=kv_type(settings.k).ggml_id,
            v_ggml_type=kv_type(settings.v).ggml_id,
            num_threads=self._num_threads,
        ) as context:
            scores = list(_scored(context, prompts))
        asked, read = scores[: len(prompts.questions)], scores[len(prompts.questions) :]
        found = self._measured(layout, prompts, asked, read)
        kld = found.samples["kld"]
        recall = found.scalars["recall_share"]
        say(
            f"{settings.k}/{settings.v}: KL divergence {np.mean(kld):.3g} nats, recall {recall:.3f}"
        )
        return found

    def _prompts_for(self, settings: QualitySettings, repetition: int, say: Say) -> _Prompts:
        key = (repetition, settings.prompts, settings.prompt_tokens)
        if self._prompts is None or self._prompts.key != key:
            self._prompts = None  # before its file is overwritten
            self._prompts = self._make_prompts(key, say)
        return self._prompts

    def _make_prompts(self, key: tuple[int, int, int], say: Say) -> _Prompts:
        repetition, num_prompts, prompt_tokens = key
        if prompt_tokens > self._spec.context_length:
            raise ConfigError(
                f"prompt_tokens: need at most {self._spec.context_length}, the model's context, "
                f"have {prompt_tokens}"
            )
        draw = draws(self._seed, repetition)
        vocab, texts = self._model.vocab, self._texts
        if self._is_demo:
            questions = recall_passages(self._model, num_prompts, prompt_tokens, draw)
        else:
            questions = needle_passages(vocab, texts, num_prompts, prompt_tokens, draw)
        windows = []
        if texts:
            windows = text_passages(vocab, texts, num_prompts, prompt_tokens, draw)
        say(f"reading {num_prompts} prompts with a cache of {REFERENCE_TYPE}, to compare with")
        path = Path(self._folder.name) / "reference.f32"
        # Another file, not this one anew: what is mapped stays as it is until it is let go.
        path.unlink(missing_ok=True)
        reference_RV = write_reference(self._model, [*questions, *windows], self._num_threads, path)
        return _Prompts(key, questions, windows, reference_RV)

    def _measured(
        self,
        layout: KVLayout,
        prompts: _Prompts,
        asked: Sequence[list[Scores]],
        read: Sequence[list[Scores]],
    ) -> Measured:
        answers = [branch for branches in asked for branch in branches]
        if read:
            compared = joined([branch for branches in read for branch in branches])
        else:
            compared = joined([answer.row(LIST_VALUE) for answer in answers])
        margins = [float(answer.margin.min()) for answer in answers]
        right = [float(margin > 0) for margin in margins]
        scalars = {
            "recall_share": float(np.mean(right)),
            "same_top": float(compared.has_same_top.mean()),
            "compared_positions": float(len(compared.kld)),
            "kv_bytes_per_token": float(layout.token_bytes),
            "k_rotation": float(layout.k_rotation),
            "v_rotation": float(layout.v_rotation),
        }
        samples = {"kld": compared.kld.tolist(), "recall": right, "margin": margins}
        # Of a window's positions none is a sample of its own.
        windows = [sum(len(branch.kld) for branch in branches) for branches in read]
        if read:
            nll, reference_nll = compared.nll.mean(), compared.reference_nll.mean()
            scalars["perplexity"] = float(np.exp(nll))
            scalars["perplexity_ratio"] = float(np.exp(nll - reference_nll))
        records = [
            *self._question_records(prompts.questions, asked),
            *_window_records(prompts.windows, read),
        ]
        per_request = {"kld": windows} if read else {}
        return Measured(scalars=scalars, samples=samples, per_request=per_request, records=records)

    def _question_records(
        self, passages: Sequence[Passage], asked: Sequence[list[Scores]]
    ) -> Iterator[dict[str, Any]]:
        vocab = self._model.vocab
        for passage, branches in zip(passages, asked, strict=True):
            for branch, scores in zip(passage.branches, branches, strict=True):
                yield {
                    "prompt": passage.name,
                    "prompt_tokens": len(passage.context) + branch.num_together,
                    "need": vocab.detokenize(branch.right_tokens),
                    "have": vocab.detokenize(scores.top_tokens.tolist()),
                    "recall": bool(scores.margin.min() > 0),
                    "margin": float(scores.margin.min()),
                    "kld_mean": float(scores.kld.mean()),
                }


def _window_records(
    passages: Sequence[Passage], read: Sequence[list[Scores]]
) -> Iterator[dict[str, Any]]:
    for passage, branches in zip(passages, read, strict=True):
        scores = joined(branches)
        yield {
            "prompt": passage.name,
            "prompt_tokens": passage.num_tokens,
            "kld_mean": float(scores.kld.mean()),
            "nll_mean": float(scores.nll.mean()),
        }


def _scored(context: Context, prompts: _Prompts) -> Iterator[list[Scores]]:
    """Of each passage's branches, row by row beside the reference."""
    row = 0
    for passage in prompts.passages:
        read_context(context, passage)
        branches = []
        for branch in passage.branches:
            parts, right = [], branch.right_tokens
            for logits in branch_logits(context, passage, branch):
                reference = prompts.reference_RV[row : row + len(logits)]
                parts.append(score(reference, logits, right[: len(logits)]))
                right = right[len(logits) :]
                row += len(logits)
            branches.append(joined(parts))
        yield branches
