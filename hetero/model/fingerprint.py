"""Which model a file is, as four digests that two nodes compare before any KV moves.

A renamed, re-split or re-labelled file is the same model; one changed byte of anything that
decides tokens or cache rows is another. Hashing reads the whole file, so the result is kept in a
sidecar under the user's cache directory until a part of the file changes.
"""

import json
import logging
import os
from pathlib import Path

import msgspec
import numpy as np
from blake3 import blake3

from hetero.messages import ModelFingerprint
from hetero.model.gguf_file import GGUFFile

logger = logging.getLogger(__name__)

# Large enough that every core gets megabytes of each read to hash, small beside any model.
READ_BYTES = 64 * 2**20

# Raised when the digests' definition changes, so that old sidecars are not believed.
_SIDECAR_VERSION = 1

# Keys that say where a file came from or how it is stored; types and shapes are hashed as tensors.
_LABELS = ("general.", "split.", "quantize.")
_CHAT_TEMPLATE = "tokenizer.chat_template"


class _PartState(msgspec.Struct, frozen=True, kw_only=True):
    """What a file part looked like when it was hashed."""

    num_bytes: int
    mtime_ns: int
    inode: int


class _Sidecar(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    parts: tuple[_PartState, ...]
    fingerprint: ModelFingerprint


def fingerprint_model(path: str | Path) -> ModelFingerprint:
    """The model's digests, from the sidecar if the file is as it was then.

    A cache directory that can't be read or written costs time, nothing else.
    Raises: ModelError if the file can't be read.
    """
    model = GGUFFile.open(path)
    # Before hashing: a file that changes meanwhile will not match what is recorded.
    parts = tuple(_part_state(part) for part in model.parts)
    sidecar_path = _sidecar_path(model.parts[0])
    known = _load_sidecar(sidecar_path)
    if known is not None and (known.version, known.parts) == (_SIDECAR_VERSION, parts):
        return known.fingerprint
    fingerprint = _hash_model(model)
    _save_sidecar(
        sidecar_path, _Sidecar(version=_SIDECAR_VERSION, parts=parts, fingerprint=fingerprint)
    )
    return fingerprint


def _hash_model(model: GGUFFile) -> ModelFingerprint:
    hyperparameters: dict[str, object] = {}
    tokenizer: dict[str, object] = {}
    chat_template: dict[str, object] = {}
    for key, value in model.metadata.items():
        if key.startswith(_CHAT_TEMPLATE):
            chat_template[key] = value
        elif key.startswith("tokenizer."):
            tokenizer[key] = value
        elif not key.startswith(_LABELS) or key == "general.architecture":
            hyperparameters[key] = value
    return ModelFingerprint(
        hyperparameters=_hash_values(hyperparameters),
        tokenizer=_hash_values(tokenizer),
        chat_template=_hash_values(chat_template),
        tensors=_hash_tensors(model),
    )


def _hash_values(values: dict[str, object]) -> str:
    # ASCII JSON is the same text on every Python version, unlike repr, and keeps int and float
    # apart; bytes that are not UTF-8 arrive as lone surrogates and stay distinct escapes.
    return blake3(json.dumps(values, sort_keys=True).encode("ascii")).hexdigest()


def _hash_tensors(model: GGUFFile) -> str:
    """Hash each tensor where it lies, front to back, then the digests in order of name."""
    buffer = np.empty(READ_BYTES, np.uint8)
    digests = {}
    for tensor in model.tensors.values():
        hasher = blake3(max_threads=blake3.AUTO)
        for chunk in model.read_chunks(tensor.name, buffer):
            hasher.update(chunk.data)
        digests[tensor.name] = [int(tensor.type), tensor.shape, hasher.hexdigest()]
    return _hash_values(dict(digests))


def _part_state(part: Path) -> _PartState:
    stat = part.stat()
    return _PartState(num_bytes=stat.st_size, mtime_ns=stat.st_mtime_ns, inode=stat.st_ino)


def _sidecar_path(first_part: Path) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = blake3(os.fsencode(os.path.realpath(first_part))).hexdigest(length=16)
    return Path(cache) / "hetero" / "fingerprints" / f"{name}.json"


def _load_sidecar(path: Path) -> _Sidecar | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Sidecar)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        logger.warning("fingerprint cache %s is unusable, hashing the model again: %s", path, error)
        return None


def _save_sidecar(path: Path, sidecar: _Sidecar) -> None:
    # Whole or not at all: two nodes of one machine may write it at once.
    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(msgspec.json.encode(sidecar))
        os.replace(unfinished, path)
    except OSError as error:
        logger.warning("fingerprint not cached, the next start hashes the model again: %s", error)
