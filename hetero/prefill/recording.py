"""A recording: the packed cache rows of one long prompt, as an engine computed them, in a file.

    a line of JSON (`RecordingHeader`), then without gaps
    K rows      (layers, tokens, k_row_bytes) bytes
    V rows      (layers, tokens, v_row_bytes) bytes
    logits      (vocabulary,) float32, little-endian: of the last token
    digest      blake3 of everything before it

A file may come from elsewhere: its fingerprint is compared with the served model's before any size
is computed from it, and every size with the file's, before a row is read.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
from blake3 import blake3

from hetero.errors import ConfigError, EngineError, ModelError
from hetero.kv.layout import KVLayout
from hetero.kv.rows import Kind, RowFrame
from hetero.messages import Fingerprint, ModelFingerprint, Tokens
from hetero.prefill.engine import PrefillEngine, read_alone

# Raised with every change that an older reader would misread.
FORMAT = 1

# Twice what `Tokens` can take; whoever names another file is told so before much of it is read.
_MAX_HEADER_BYTES = 96 * 2**20

# More than any tokenizer has.
_MAX_VOCABULARY = 2**24

_DIGEST_BYTES = blake3.digest_size
_LOGITS = np.dtype("<f4")
_READ_BYTES = 16 * 2**20


class RecordingHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """engine, chunk_tokens: what computed it, and in steps of how many tokens."""

    format: int
    fingerprint: Fingerprint
    engine: str
    chunk_tokens: int
    vocabulary: Annotated[int, msgspec.Meta(ge=1, le=_MAX_VOCABULARY)]
    tokens: Tokens


class _Places:
    """Where what begins in a file, and its size, in bytes."""

    def __init__(self, header: RecordingHeader, header_bytes: int) -> None:
        layout = self._layout = header.fingerprint.layout
        self._num_tokens = len(header.tokens)
        self.k = header_bytes
        self.v = self.k + layout.num_layers * self._num_tokens * layout.k_row_bytes
        self.logits = self.v + layout.num_layers * self._num_tokens * layout.v_row_bytes
        self.digest = self.logits + header.vocabulary * _LOGITS.itemsize
        self.end = self.digest + _DIGEST_BYTES

    def row(self, kind: Kind, layer: int, token: int) -> int:
        start = self.k if kind == "k" else self.v
        return start + (layer * self._num_tokens + token) * self._layout.row_bytes(kind)


class Recording:
    """A file's rows, by memory map: they stay on disk, or in the page cache where there is room."""

    def __init__(self, path: Path, fingerprint: Fingerprint) -> None:
        """Reads the whole file once, which also brings it into the page cache.

        Raises: ConfigError if it can't be read or is damaged, ModelError if it is not of the
        model and the cache types that are served.
        """
        try:
            with path.open("rb") as file:
                line = file.readline(_MAX_HEADER_BYTES)
                num_bytes = os.fstat(file.fileno()).st_size
                self.header = _read_header(path, line)
                _check_fingerprint(path, self.header, fingerprint)
                places = _Places(self.header, len(line))
                if num_bytes != places.end:
                    raise ConfigError(
                        f"recording {path}: need {places.end} bytes for {len(self.header.tokens)} "
                        f"tokens, have {num_bytes}: it is cut or damaged; record again"
                    )
                _check_digest(path, file.fileno(), places.digest)
                content = np.memmap(file, np.uint8, mode="r")
        except OSError as error:
            raise ConfigError(f"recording {path}: can't read it: {_reason(error)}") from None
        self.layout: KVLayout = self.header.fingerprint.layout
        self._rows = {
            "k": self._section(content[places.k : places.v], self.layout.k_row_bytes),
            "v": self._section(content[places.v : places.logits], self.layout.v_row_bytes),
        }
        logits = content[places.logits : places.digest].tobytes()
        self.logits: npt.NDArray[np.float32] = np.frombuffer(logits, _LOGITS).astype(np.float32)
        if not np.isfinite(self.logits).all():
            raise ConfigError(
                f"recording {path}: need finite logits, have inf or nan; record again"
            )

    @property
    def num_tokens(self) -> int:
        return len(self.header.tokens)

    def rows(self, kind: Kind, layers: range, tokens: range) -> npt.NDArray[np.uint8]:
        """(layers, tokens, row_bytes), a copy. Beyond its last token the recording begins again."""
        rows_LTB = self._rows[kind]
        found = np.empty((len(layers), len(tokens), rows_LTB.shape[2]), np.uint8)
        at = 0
        while at < len(tokens):
            first = (tokens.start + at) % self.num_tokens
            count = min(len(tokens) - at, self.num_tokens - first)
            found[:, at : at + count] = rows_LTB[layers.start : layers.stop, first : first + count]
            at += count
        return found

    def _section(self, content: npt.NDArray[np.uint8], row_bytes: int) -> npt.NDArray[np.uint8]:
        return content.reshape(self.layout.num_layers, self.num_tokens, row_bytes)


def record(
    engine: PrefillEngine, model: ModelFingerprint, tokens: Sequence[int], path: Path
) -> None:
    """Read a prompt and write what came of it, whole or not at all.

    Raises: what the engine raises; ConfigError if the file can't be written.
    """
    prompt = tuple(tokens)
    header = RecordingHeader(
        format=FORMAT,
        fingerprint=Fingerprint(model=model, layout=engine.layout),
        engine=engine.name,
        chunk_tokens=engine.chunk_tokens,
        vocabulary=_MAX_VOCABULARY,  # known with the logits
        tokens=prompt,
    )
    room = len(_line(header))
    places = _Places(header, room)
    with _written_whole(path) as file:
        run = engine.start(prompt)
        with closing(read_alone(engine, run)) as frames:
            for frame in frames:
                _write_rows(file, places, frame)
        if run.last_logits is None:
            raise EngineError(f"recording {path}: need the engine's last logits, have none")
        header = msgspec.structs.replace(header, vocabulary=run.last_logits.size)
        _write_all(file, _line(header).rstrip(b"\n").ljust(room - 1) + b"\n", 0)
        _write_all(file, run.last_logits.astype(_LOGITS).tobytes(), places.logits)
        end = _Places(header, room).digest
        _write_all(file, _digest_of(file, end), end)


def _line(header: RecordingHeader) -> bytes:
    return msgspec.json.encode(header) + b"\n"


def _read_header(path: Path, line: bytes) -> RecordingHeader:
    try:
        header = msgspec.json.decode(line, type=RecordingHeader)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(
            f"recording {path}: need a recording's header in its first line, have: {error}; "
            "record again"
        ) from None
    if header.format != FORMAT:
        raise ConfigError(
            f"recording {path}: need format {FORMAT}, have {header.format}; record again with this "
            "version of hetero"
        )
    return header


def _check_fingerprint(path: Path, header: RecordingHeader, fingerprint: Fingerprint) -> None:
    differing = fingerprint.differences(header.fingerprint)
    if differing:
        raise ModelError(
            f"recording {path}: need one of the model and cache types served here, have another "
            f"({'; '.join(differing)}); record again"
        )


def _check_digest(path: Path, file: int, end: int) -> None:
    need, have = os.pread(file, _DIGEST_BYTES, end), _digest_of(file, end)
    if need != have:
        raise ConfigError(
            f"recording {path}: need the digest {need.hex()[:12]} it was written with, have "
            f"{have.hex()[:12]}: it is damaged; record again"
        )


def _digest_of(file: int, end: int) -> bytes:
    """Of the first `end` bytes."""
    hasher = blake3()
    for start in range(0, end, _READ_BYTES):
        hasher.update(os.pread(file, min(_READ_BYTES, end - start), start))
    return hasher.digest()


@contextmanager
def _written_whole(path: Path) -> Iterator[int]:
    """A file to write at offsets, which takes its name when it is complete.

    Raises: ConfigError if it can't be written: rows are not mapped here, since a full disk would
    then end the process.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            yield file
        finally:
            os.close(file)
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"recording {path}: can't write it: {_reason(error)}") from None
    finally:
        with suppress(OSError):
            partial.unlink()


def _write_rows(file: int, places: _Places, frame: RowFrame) -> None:
    for layer, rows in zip(range(frame.first_layer, frame.end_layer), frame.rows, strict=True):
        _write_all(file, rows.tobytes(), places.row(frame.kind, layer, frame.first_token))


def _write_all(file: int, content: bytes, offset: int) -> None:
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
