"""A prompt's tokens, as the router will see them: without weights, in this process."""

from pathlib import Path

from hetero.llama.model import Model
from hetero.model.gguf_file import GGUFFile
from hetero.serve.http.openai import ChatBody, ChatMessage, TextBody
from hetero.serve.http.tokens import chat_tokens, text_tokens
from hetero.serve.service import ServedModel


def prompt_tokens(path: Path, text: str, *, chat: bool) -> list[int]:
    """Of a raw prompt, or of a chat whose only message is the user's `text`."""
    template = GGUFFile.open(path).metadata.get("tokenizer.chat_template")
    with Model(path, vocab_only=True) as model:
        served = ServedModel(
            name=path.stem,
            vocab=model.vocab,
            chat_template=template if isinstance(template, str) else None,
            context_tokens=0,
        )
        if chat:
            message = ChatMessage(role="user", content=text)
            return chat_tokens(served, ChatBody(messages=[message]))
        return text_tokens(served, TextBody(prompt=text))
