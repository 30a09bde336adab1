"""The demo model's tokens, their order in the file, and its chat template.

256 byte tokens come first, spelled in gpt2's alphabet so that any text tokenizes; then control
tokens; then whole words, which llama.cpp matches literally. There are no merges that text can
use, so a text is its words and, between them, its bytes.
"""

from hetero.model.demo import ADJECTIVES, CITIES, NOUNS


def _byte_alphabet() -> list[str]:
    """gpt2's printable stand-in for each byte, indexed by the byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_in = {byte: chr(byte) for byte in printable}
    stand_in |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [stand_in[byte] for byte in range(256)]


BYTES = _byte_alphabet()
CONTROLS = ["<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
WORDS = [f"{word} " for word in (*ADJECTIVES, *NOUNS)] + list(CITIES)
TOKENS = BYTES + CONTROLS + WORDS

NEWLINE, QUESTION = ord("\n"), ord("?")
BOS, END, USER, ASSISTANT, SYSTEM = range(len(BYTES), len(BYTES) + len(CONTROLS))
FIRST_ADJECTIVE = len(BYTES) + len(CONTROLS)
FIRST_NOUN = FIRST_ADJECTIVE + len(ADJECTIVES)
FIRST_CITY = FIRST_NOUN + len(NOUNS)

# The tokenizer wants a merge list; this pair is not UTF-8, so no text holds it.
MERGES = [f"{BYTES[0xFF]} {BYTES[0xFF]}"]

CHAT_TEMPLATE = (
    "<|bos|>{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
