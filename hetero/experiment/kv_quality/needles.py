"""Recall for a model of any kind: codes strewn into text, and questions for each of them.

A question ends in the beginning of its answer, so that the code is what comes next, for models with
and without a chat template: they are read as plain text.
"""

import random
from collections.abc import Sequence

from hetero.errors import ConfigError
from hetero.experiment.kv_quality.passages import Branch, Passage, Text
from hetero.llama.model import Vocab

# A text is read once for all of them.
CODES_PER_TEXT = 4

_FIRST_LOCKER, _END_LOCKER = 10, 100
_CODE_DIGITS = 6


def needle_passages(
    vocab: Vocab,
    texts: Sequence[Text],
    num_questions: int,
    prompt_tokens: int,
    draw: random.Random,
) -> list[Passage]:
    """As many as it takes to ask so many questions, each prompt of `prompt_tokens` at most.

    Raises: ConfigError if the texts are too short for one, or prompts too short for the codes.
    """
    passages: list[Passage] = []
    while num_questions > 0:
        num_codes = min(CODES_PER_TEXT, num_questions)
        passages.append(_passage(vocab, texts, num_codes, prompt_tokens, draw))
        num_questions -= num_codes
    return passages


def _passage(
    vocab: Vocab,
    texts: Sequence[Text],
    num_codes: int,
    prompt_tokens: int,
    draw: random.Random,
) -> Passage:
    lockers = draw.sample(range(_FIRST_LOCKER, _END_LOCKER), num_codes)
    codes = ["".join(draw.choices("0123456789", k=_CODE_DIGITS)) for _ in lockers]
    notes = [
        _tokens(vocab, f"\nThe code of locker {locker} is {code}.\n")
        for locker, code in zip(lockers, codes, strict=True)
    ]
    branches = [_question(vocab, *pair) for pair in zip(lockers, codes, strict=True)]
    beside = int(vocab.adds_bos) + sum(map(len, notes))
    beside += max(len(branch.tokens) for branch in branches)
    num_tokens = prompt_tokens - beside
    if num_tokens < beside:
        raise ConfigError(
            f"prompt_tokens: need {2 * beside} or more to hide {num_codes} codes in text, "
            f"have {prompt_tokens}"
        )
    text, first = _place(texts, num_tokens, draw)
    # From the last to the first, so that the places before stay where they are.
    context = text.tokens[first : first + num_tokens]
    depths = sorted((draw.randint(0, num_tokens) for _ in notes), reverse=True)
    for depth, note in zip(depths, notes, strict=True):
        context[depth:depth] = note
    if vocab.adds_bos:
        context.insert(0, vocab.bos_token)
    return Passage(name=f"{text.name}, token {first}, codes", context=context, branches=branches)


def _place(texts: Sequence[Text], num_tokens: int, draw: random.Random) -> tuple[Text, int]:
    """Any place with so many tokens behind it, all of them as likely."""
    places = [max(0, len(text.tokens) - num_tokens + 1) for text in texts]
    if not any(places):
        raise ConfigError(
            f"texts: need one of {num_tokens} tokens, have {max(len(t.tokens) for t in texts)}"
        )
    (text,) = draw.choices(texts, places)
    return text, draw.randint(0, len(text.tokens) - num_tokens)


def _question(vocab: Vocab, locker: int, code: str) -> Branch:
    asked = (
        f"\nQuestion: What is the code of locker {locker}?\nAnswer: The code of locker {locker} is "
    )
    tokens = _tokens(vocab, asked + code)
    # How a tokenizer cuts digits and the space before them is its own affair: the answer begins
    # where another code would differ.
    other = str((int(code[0]) + 5) % 10) + code[1:]
    pairs = zip(tokens, _tokens(vocab, asked + other), strict=False)
    num_asked = next(index for index, (one, another) in enumerate(pairs) if one != another)
    return Branch(tokens=tokens, num_together=num_asked, first_scored=num_asked - 1)


def _tokens(vocab: Vocab, text: str) -> list[int]:
    return vocab.tokenize(text, add_special=False, parse_special=False)
