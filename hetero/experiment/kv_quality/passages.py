"""What is read and scored: lists with questions, or windows of text. Tokens only; seeded."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hetero.errors import ConfigError
from hetero.llama.model import Model, Vocab
from hetero.model.demo import recall_prompt
from hetero.model.gguf_file import GGUFFile
from hetero.serve.http.openai import ChatBody, ChatMessage
from hetero.serve.http.tokens import chat_tokens
from hetero.serve.service import ServedModel

# A list is read once for all of them: they cost little beside it.
QUESTIONS_PER_LIST = 16

_LINE_TOKENS = 4  # two words, a value and a line's end
_QUESTION_TOKENS = 5  # two words, "?", <|end|>, <|assistant|>
_CHAT_TOKENS = 2 + _QUESTION_TOKENS  # <|bos|> and <|user|> before the list


@dataclass(frozen=True, kw_only=True)
class Branch:
    """What comes after a passage's context, read and then forgotten again.

    The first `num_together` tokens are read in chunks, the others one at a time, as they would be
    generated. Logits from token `first_scored` on are scored by the token that follows each; the
    last token is not read.
    """

    tokens: list[int]
    num_together: int
    first_scored: int

    @property
    def right_tokens(self) -> list[int]:
        return self.tokens[self.first_scored + 1 :]


@dataclass(frozen=True, kw_only=True)
class Passage:
    name: str
    context: list[int]  # read before the branches, nothing of it scored
    branches: list[Branch]

    @property
    def num_tokens(self) -> int:
        """That the cache must hold."""
        return len(self.context) + max(len(branch.tokens) for branch in self.branches)


def draws(seed: int, repetition: int) -> random.Random:
    """Each repetition has prompts of its own: the same ones would give the same answers again."""
    return random.Random(f"kv-quality {seed} {repetition}")


# Where the value stands in an answer about a list: behind its key, before the end token.
LIST_VALUE = -2


def recall_passages(
    model: Model, num_lists: int, prompt_tokens: int, draw: random.Random
) -> list[Passage]:
    """Lists for the demo model, as long as prompts of `prompt_tokens` may be, with questions.

    Only answers are scored: the lines of a list are random, and say nothing of what the model
    still finds in its cache.

    Raises: ConfigError for prompts too short to hold a line.
    """
    num_pairs = (prompt_tokens - _CHAT_TOKENS) // _LINE_TOKENS
    if num_pairs < 1:
        need = _CHAT_TOKENS + _LINE_TOKENS
        raise ConfigError(f"prompt_tokens: need {need} or more, have {prompt_tokens}")
    template = GGUFFile.open(model.path).metadata.get("tokenizer.chat_template")
    served = ServedModel(
        name=model.path.stem,
        vocab=model.vocab,
        chat_template=template if isinstance(template, str) else None,
        context_tokens=0,
    )
    passages = []
    for _ in range(num_lists):
        seed = draw.randrange(2**31)
        asked = draw.sample(range(num_pairs), min(QUESTIONS_PER_LIST, num_pairs))
        passages.append(_recall_passage(served, num_pairs, seed, asked))
    return passages


def _recall_passage(served: ServedModel, num_pairs: int, seed: int, asked: list[int]) -> Passage:
    prompts, answers = [], []
    for question in asked:
        task = recall_prompt(num_pairs, seed, question=question)
        message = ChatMessage(role="user", content=task.content)
        prompts.append(chat_tokens(served, ChatBody(messages=[message])))
        answer = served.vocab.tokenize(task.answer, add_special=False, parse_special=False)
        answers.append([*answer, served.vocab.eos_token])
    branches = [
        Branch(
            tokens=[*prompt[-_QUESTION_TOKENS:], *answer],
            num_together=_QUESTION_TOKENS,
            first_scored=_QUESTION_TOKENS - 1,
        )
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return Passage(name=f"list {seed}", context=prompts[0][:-_QUESTION_TOKENS], branches=branches)


@dataclass(frozen=True, kw_only=True)
class Text:
    name: str
    tokens: list[int]


def read_text(vocab: Vocab, path: Path) -> Text:
    """Raises: ConfigError naming the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: can't read it: {(error.strerror or str(error)).lower()}"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: need UTF-8, have {error.reason}") from None
    return Text(name=path.name, tokens=vocab.tokenize(text, add_special=False, parse_special=False))


def text_passages(
    vocab: Vocab,
    texts: Sequence[Text],
    num_windows: int,
    window_tokens: int,
    draw: random.Random,
) -> list[Passage]:
    """Windows that don't overlap, drawn from all there are. The second half of each is scored, as
    llama-perplexity does, where every token has half a window before it.

    Raises: ConfigError if the texts are too short.
    """
    if window_tokens < 4:
        raise ConfigError(f"prompt_tokens: need 4 or more, have {window_tokens}")
    windows = [
        (text, first)
        for text in texts
        for first in range(0, len(text.tokens) - window_tokens + 1, window_tokens)
    ]
    if len(windows) < num_windows:
        raise ConfigError(
            f"texts: need {num_windows} windows of {window_tokens} tokens, have {len(windows)}; "
            "give longer texts, or fewer prompts"
        )
    chosen = sorted(draw.sample(range(len(windows)), num_windows))
    return [_window(vocab, *windows[index], window_tokens) for index in chosen]


def _window(vocab: Vocab, text: Text, first: int, num_tokens: int) -> Passage:
    tokens = text.tokens[first : first + num_tokens]
    if vocab.adds_bos:
        tokens[0] = vocab.bos_token
    half = num_tokens // 2
    return Passage(
        name=f"{text.name}, token {first}",
        context=tokens[:half],
        branches=[Branch(tokens=tokens[half:], num_together=num_tokens - half, first_scored=0)],
    )
