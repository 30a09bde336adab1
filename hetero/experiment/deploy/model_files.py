"""The file of a recipe's model: the demo's, the user's, or a synthetic one that is written once."""

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
from blake3 import blake3

from hetero.errors import ConfigError, ModelError
from hetero.experiment.figures import Say
from hetero.experiment.models import cache_folder
from hetero.experiment.models import model_file as synthetic_file
from hetero.experiment.recipe.recipe import Model, ModelShape
from hetero.model.demo import DEMO_MODEL_PATH
from hetero.model.shapes import Shape, parse_shape

_CONTEXT_TOKENS = 131072  # of a shape by sizes: no limit of its own


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    path: Path
    hash: str  # blake3 of the file, hexadecimal


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    """What was hashed once. The path says nothing: a file may be moved or replaced."""

    num_bytes: int
    mtime_ns: int
    inode: int
    hash: str


def model_file(model: Model, say: Say) -> ModelFile:
    """Synthetic models are kept in the cache.

    Raises: ConfigError for sizes that no llama has, ModelError for a file that is not the one
    meant, PlanError if the disk is too small.
    """
    if model.demo:
        path = DEMO_MODEL_PATH
    elif model.file is not None:
        assert model.hash is not None, "a file without its hash was refused"
        return _users_file(model.file, model.hash)
    else:
        assert model.shape is not None, "a recipe without a model was refused"
        path = synthetic_file(
            cache_folder(), _shape(model.shape), model.quant, say, seed=model.seed
        )
    return ModelFile(path=path, hash=file_hash(path))


def file_hash(path: Path) -> str:
    """Read once: the cache knows it until the file changes. Raises: ModelError if it can't."""
    try:
        stat = path.stat()
        # By where it is, as fingerprints are: its own folder may be read-only.
        name = blake3(os.fsencode(os.path.realpath(path))).hexdigest(length=16)
        sidecar = cache_folder().parent / "hashes" / f"{name}.json"
        known = _read(sidecar)
        found = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        if known is not None and (known.num_bytes, known.mtime_ns, known.inode) == found:
            return known.hash
        hasher = blake3(max_threads=blake3.AUTO)
        hasher.update_mmap(path)
    except OSError as error:
        raise ModelError(f"{path}: can't read it: {error.strerror or error}") from None
    num_bytes, mtime_ns, inode = found
    hash_ = hasher.hexdigest()
    _write(sidecar, _Known(num_bytes=num_bytes, mtime_ns=mtime_ns, inode=inode, hash=hash_))
    return hash_


def synthetic_shape(sizes: ModelShape) -> Shape:
    """A llama of these sizes, named after them: recipes that mean the same model share its file.

    Raises: ConfigError for what no llama has.
    """
    if sizes.heads % sizes.kv_heads:
        raise ConfigError(
            f"model.shape: need heads a multiple of kv_heads, have {sizes.heads} and "
            f"{sizes.kv_heads}"
        )
    return Shape(
        name=(
            f"llama-{sizes.layers}x{sizes.hidden}-h{sizes.heads}-kv{sizes.kv_heads}x"
            f"{sizes.head_dim}-f{sizes.ffn}-v{sizes.vocab}"
        ),
        architecture="llama",
        num_layers=sizes.layers,
        hidden_size=sizes.hidden,
        num_heads=sizes.heads,
        num_kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        ffn_size=sizes.ffn,
        vocab_size=sizes.vocab,
        context_length=_CONTEXT_TOKENS,
        norm_eps=1e-5,
        rope_base=500000.0,
    )


def _users_file(file: str, need: str) -> ModelFile:
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        raise ModelError(f"model.file: need a model file, have none at {path}")
    have = file_hash(path)
    if need != have:
        raise ModelError(
            f"model.file: need hash {need}, have {have} in {path}; get the model that the recipe "
            "means, or say in a copy of the recipe that you mean this one"
        )
    return ModelFile(path=path, hash=have)


def _shape(shape: str | ModelShape) -> Shape:
    return synthetic_shape(shape) if isinstance(shape, ModelShape) else parse_shape(shape)[0]


def _read(sidecar: Path) -> _Known | None:
    try:
        return msgspec.json.decode(sidecar.read_bytes(), type=_Known)
    except (OSError, msgspec.DecodeError):
        return None


def _write(sidecar: Path, known: _Known) -> None:
    """A cache that can't be written is one that is slow."""
    try:
        sidecar.parent.mkdir(parents=True, exist_ok=True)
        draft = sidecar.with_name(f"{sidecar.name}.{os.getpid()}")
        draft.write_bytes(msgspec.json.encode(known))
        draft.replace(sidecar)
    except OSError:
        return
