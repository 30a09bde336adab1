"""A GGUF model as llama.cpp loads it, with or without weights, and its vocabulary."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import llama_cpp

from hetero.errors import ModelError
from hetero.llama.library import Owned, captured_log, set_fields
from hetero.llama.load_mode import LoadMode

_LOAD_MODES: dict[LoadMode, int] = {
    "read": llama_cpp.LLAMA_LOAD_MODE_NONE,
    "mmap": llama_cpp.LLAMA_LOAD_MODE_MMAP,
}

_LONGEST_PIECE_BYTES = 1024


class Model(Owned):
    """An owned llama_model. Weights are absent with `vocab_only`: tokenizer and samplers work."""

    def __init__(
        self,
        path: Path | str,
        *,
        vocab_only: bool = False,
        gpu_layers: int = 0,
        load: LoadMode = "read",
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ModelError(f"{self.path}: need a GGUF file, have none there")
        params = llama_cpp.llama_model_default_params()
        set_fields(
            params, vocab_only=vocab_only, n_gpu_layers=gpu_layers, load_mode=_LOAD_MODES[load]
        )
        with captured_log() as errors:
            self.pointer = llama_cpp.llama_model_load_from_file(str(self.path).encode(), params)
        if not self.pointer:
            reason = errors[0] if errors else "no reason given"
            raise ModelError(f"{self.path}: llama.cpp can't load it: {reason}")
        self.vocab = Vocab(self)

    @property
    def num_heads(self) -> int:
        """Of a layer's queries."""
        return int(llama_cpp.llama_model_n_head(self.pointer))

    def close(self) -> None:
        if self.pointer:
            llama_cpp.llama_model_free(self.pointer)
            self.pointer = None


class Vocab:
    """Text to tokens and back. Thread-safe; valid while its model is open."""

    def __init__(self, model: Model) -> None:
        self._model = model  # keeps the memory behind the pointer alive
        self.pointer = llama_cpp.llama_model_get_vocab(model.pointer)
        self.num_tokens: int = llama_cpp.llama_vocab_n_tokens(self.pointer)
        self.end_tokens = frozenset(
            token
            for token in range(self.num_tokens)
            if llama_cpp.llama_vocab_is_eog(self.pointer, token)
        )
        self.bos_token: int = llama_cpp.llama_vocab_bos(self.pointer)
        self.eos_token: int = llama_cpp.llama_vocab_eos(self.pointer)
        self.adds_bos: bool = llama_cpp.llama_vocab_get_add_bos(self.pointer)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Tokens of `text`. `parse_special` reads control tokens written out in the text."""
        raw = text.encode()
        # A token covers at least one byte, plus BOS and EOS and an added leading space.
        tokens = (ctypes.c_int32 * (len(raw) + 3))()
        count = llama_cpp.llama_tokenize(
            self.pointer, raw, len(raw), tokens, len(tokens), add_special, parse_special
        )
        if count < 0:
            raise ModelError(
                f"{self._model.path}: its tokenizer failed on {len(raw)} bytes of text"
            )
        return list(tokens[:count])

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes a token stands for: part of a UTF-8 sequence, perhaps. Control tokens: b""."""
        buffer = ctypes.create_string_buffer(_LONGEST_PIECE_BYTES)
        count = llama_cpp.llama_token_to_piece(self.pointer, token, buffer, len(buffer), 0, special)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = llama_cpp.llama_token_to_piece(
                self.pointer, token, buffer, len(buffer), 0, special
            )
        return buffer.raw[:count]

    def text(self, token: int) -> str:
        """A token as the file spells it, control tokens included."""
        raw: bytes = llama_cpp.llama_vocab_get_text(self.pointer, token)
        return raw.decode("utf-8", "replace")

    def detokenize(self, tokens: Sequence[int]) -> str:
        return b"".join(self.piece(token) for token in tokens).decode("utf-8", "replace")
