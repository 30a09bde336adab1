"""Prompts to tokens and tokens to bytes, with the served model's vocabulary and chat template.

Blocking: a long prompt takes a while, so the HTTP front calls these in a worker thread.
"""

from collections.abc import Sequence

from hetero.llama.model import Vocab
from hetero.model.chat import render_chat
from hetero.serve.http.failures import RequestError
from hetero.serve.http.openai import ChatBody, ChatMessage, TextBody
from hetero.serve.service import ServedModel

# Variables of every template, which a request's own must not stand in for.
_OURS = frozenset(
    ("template", "messages", "bos", "eos", "bos_token", "eos_token", "add_generation_prompt")
) | {"documents", "range", "tools"}


class Pieces:
    """Bytes of tokens, remembered: the library's own look-up costs a C call and a buffer."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._pieces: list[bytes | None] = [None] * vocab.num_tokens

    def __getitem__(self, token: int) -> bytes:
        """Part of a UTF-8 sequence, perhaps; empty for a control token."""
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self._vocab.piece(token)
        return piece

    def spelling(self, token: int) -> str:
        """A token as OpenAI's log-probabilities name it: `bytes:\\xe2\\x82` if it is no text."""
        piece = self[token]
        if not piece:
            return self._vocab.text(token)
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def chat_tokens(model: ServedModel, body: ChatBody) -> list[int]:
    """Raises: ConfigError if there is no template, or it refuses these messages."""
    if model.chat_template is None:
        raise RequestError(
            f"messages: need a chat template, model {model.name!r} has none; use /v1/completions",
            param="messages",
        )
    taken = sorted(_OURS & body.chat_template_kwargs.keys())
    if taken:
        raise RequestError(
            f"chat_template_kwargs: need names of the template's own, have {taken[0]}",
            param="chat_template_kwargs",
        )
    vocab = model.vocab
    bos = _spelled(vocab, vocab.bos_token)
    text = render_chat(
        model.chat_template,
        [_template_message(message) for message in body.messages],
        bos=bos,
        eos=_spelled(vocab, vocab.eos_token),
        **body.chat_template_kwargs,
    )
    # Many templates write BOS themselves; the tokenizer must not add another.
    has_bos = bool(bos) and text.startswith(bos)
    return vocab.tokenize(text, add_special=not has_bos, parse_special=True)


def text_tokens(model: ServedModel, body: TextBody) -> list[int]:
    """A prompt of /v1/completions: text, in which control tokens may be written out, or tokens."""
    prompt: str | Sequence[int | str | list[int]] = body.prompt
    if len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return model.vocab.tokenize(prompt, add_special=True, parse_special=True)
    tokens = [token for token in prompt if isinstance(token, int)]
    if len(tokens) < len(prompt):
        raise RequestError(
            f"prompt: need one prompt a request, have {len(prompt)}; send several requests",
            param="prompt",
        )
    return checked_tokens(model, tokens, "prompt")


def checked_tokens(model: ServedModel, tokens: list[int], param: str) -> list[int]:
    for token in tokens:
        if not 0 <= token < model.vocab.num_tokens:
            raise RequestError(
                f"{param}: need tokens from 0 to {model.vocab.num_tokens - 1}, have {token}",
                param=param,
            )
    return tokens


def _spelled(vocab: Vocab, token: int) -> str:
    return vocab.text(token) if token >= 0 else ""


def _template_message(message: ChatMessage) -> dict[str, str]:
    content = message.content
    if not isinstance(content, str):
        content = "\n".join(part.text for part in content)
    # Templates know the older name of this role.
    role = "system" if message.role == "developer" else message.role
    fields = {"role": role, "content": content}
    if message.name is not None:
        fields["name"] = message.name
    if message.reasoning_content is not None:
        fields["reasoning_content"] = message.reasoning_content
    return fields
