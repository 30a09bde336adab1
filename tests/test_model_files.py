"""The file behind a recipe's `model:`."""

import os
import re

import pytest
from blake3 import blake3

from hetero.errors import ConfigError, ModelError
from hetero.experiment.deploy.model_files import file_hash, model_file
from hetero.experiment.recipe.recipe import Model, ModelShape
from hetero.model.demo import DEMO_MODEL_PATH
from hetero.model.gguf_file import GGUFFile

SIZES = ModelShape(layers=2, hidden=128, heads=4, kv_heads=2, head_dim=32, ffn=256, vocab=300)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_demo_is_its_file_and_hash():
    found = model_file(Model(demo=True), print)
    assert found.path == DEMO_MODEL_PATH
    assert found.hash == blake3(DEMO_MODEL_PATH.read_bytes()).hexdigest()


def test_sizes_are_written_once_and_shared(tmp_path, monkeypatch):
    said = []
    first = model_file(Model(shape=SIZES, quant="q8_0", seed=3), said.append)
    again = model_file(Model(shape=SIZES, quant="q8_0", seed=3), said.append)
    assert first == again
    assert len(said) == 1
    assert first.path.name == "llama-2x128-h4-kv2x32-f256-v300-q8_0-s3.gguf"
    assert first.path.parent == tmp_path / "cache" / "hetero" / "bench"
    metadata = GGUFFile.open(first.path).metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.attention.head_count_kv"] == 2
    other = model_file(Model(shape=SIZES, quant="q8_0", seed=4), said.append)
    assert other.hash != first.hash
    # The same elsewhere: what a result says of its model can be checked.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    elsewhere = model_file(Model(shape=SIZES, quant="q8_0", seed=3), said.append)
    assert elsewhere.path != first.path
    assert elsewhere.hash == first.hash


def test_a_file_must_be_the_one_that_is_meant(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    have = blake3(b"weights").hexdigest()
    assert model_file(Model(file=str(path), hash=have), print).path == path
    with pytest.raises(ModelError, match=f"need hash {'0' * 64}, have {have} in .*model.gguf"):
        model_file(Model(file=str(path), hash="0" * 64), print)
    with pytest.raises(ModelError, match="need a model file, have none at /nowhere"):
        model_file(Model(file="/nowhere", hash=have), print)


def test_a_file_is_hashed_again_when_it_changed(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"one")
    first = file_hash(path)
    path.write_bytes(b"other")
    assert file_hash(path) == blake3(b"other").hexdigest() != first
    # Not when it did not: a model is gigabytes.
    monkeypatch.setattr("hetero.experiment.deploy.model_files.blake3", _once(blake3))
    assert file_hash(path) == blake3(b"other").hexdigest()


def _once(real):
    """Hashes names, and no files."""

    class Hasher:
        AUTO = real.AUTO

        def __new__(cls, *words, **options):
            assert words, "a file is hashed"
            return real(*words, **options)

    return Hasher


def test_heads_that_do_not_divide_are_refused():
    sizes = ModelShape(layers=1, hidden=96, heads=3, kv_heads=2, head_dim=32, ffn=96, vocab=300)
    with pytest.raises(ConfigError, match=re.escape("heads a multiple of kv_heads, have 3 and 2")):
        model_file(Model(shape=sizes), print)
    assert not (os.environ["XDG_CACHE_HOME"] and os.path.exists(os.environ["XDG_CACHE_HOME"]))
