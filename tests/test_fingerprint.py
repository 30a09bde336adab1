import logging
import os
import shutil
import struct

import msgspec
import pytest
from tiny_models import write_tiny_model

from hetero.errors import ModelError
from hetero.model import fingerprint
from hetero.model.fingerprint import fingerprint_model
from hetero.model.gguf_file import GGUFFile


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hetero" / "fingerprints"


@pytest.fixture
def model(tmp_path):
    return write_tiny_model(tmp_path / "m.gguf", num_layers=1)


def changed_fields(before, after):
    fields = before.__struct_fields__
    return [name for name in fields if getattr(before, name) != getattr(after, name)]


def replace_bytes(path, old, new):
    content = path.read_bytes()
    assert content.count(old) == 1
    assert len(old) == len(new)
    path.write_bytes(content.replace(old, new))


def flip_byte(path, position):
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def change_hyperparameter(path):
    key = b"llama.rope.freq_base" + struct.pack("<I", 6)
    replace_bytes(path, key + struct.pack("<f", 10000), key + struct.pack("<f", 10001))


def change_token(path):
    replace_bytes(path, b"w300", b"W300")


def change_template(path):
    replace_bytes(path, b"assistant\\n", b"Assistant\\n")


def change_tensor(path):
    tensor = GGUFFile.open(path).tensors["blk.0.ffn_up.weight"]
    flip_byte(path, tensor.offset + tensor.num_bytes // 2)


def change_tensor_type(path):
    # F16 and BF16 store different values in the same bytes.
    row = b"output.weight" + struct.pack("<IQQI", 2, 256, 512, 1)
    replace_bytes(path, row, row[:-4] + struct.pack("<I", 30))


def change_nothing(path):
    replace_bytes(path, b"tiny-llama", b"other-name")


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (change_hyperparameter, ["hyperparameters"]),
        (change_token, ["tokenizer"]),
        (change_template, ["chat_template"]),
        (change_tensor, ["tensors"]),
        (change_tensor_type, ["tensors"]),
        (change_nothing, []),
    ],
)
def test_a_change_shows_in_its_own_field_alone(model, change, fields):
    before = fingerprint_model(model)
    change(model)
    assert changed_fields(before, fingerprint_model(model)) == fields


def test_every_tensor_counts(model):
    before = fingerprint_model(model)
    for tensor in GGUFFile.open(model).tensors.values():
        flip_byte(model, tensor.offset)
        assert changed_fields(before, fingerprint_model(model)) == ["tensors"], tensor.name
        flip_byte(model, tensor.offset)
    assert fingerprint_model(model) == before


def test_name_place_and_splitting_do_not_count(tmp_path, model):
    whole = fingerprint_model(model)
    assert fingerprint_model(shutil.copy(model, tmp_path / "renamed.gguf")) == whole
    split = write_tiny_model(tmp_path / "split.gguf", num_layers=1, split_max_tensors=4)
    assert fingerprint_model(split) == whole


def test_reads_larger_than_the_buffer_hash_the_same(model, monkeypatch):
    whole = fingerprint._hash_model(GGUFFile.open(model))
    monkeypatch.setattr(fingerprint, "READ_BYTES", 1000)
    assert fingerprint._hash_model(GGUFFile.open(model)) == whole


@pytest.fixture
def hashed(monkeypatch):
    """Paths hashed from the moment of asking; the real work is still done."""
    paths = []
    hash_model = fingerprint._hash_model

    def record(model):
        paths.append(model.parts[0].name)
        return hash_model(model)

    monkeypatch.setattr(fingerprint, "_hash_model", record)
    return paths


def test_a_file_is_hashed_once(tmp_path, model, hashed, cache):
    first = fingerprint_model(model)
    link = tmp_path / "link.gguf"
    link.symlink_to(model)
    assert fingerprint_model(model) == fingerprint_model(link) == first
    assert hashed == ["m.gguf"]
    assert [path.suffix for path in cache.iterdir()] == [".json"]


def test_a_touched_or_replaced_file_is_hashed_again(tmp_path, model, hashed):
    first = fingerprint_model(model)
    stat = model.stat()
    os.utime(model, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert fingerprint_model(model) == first
    assert len(hashed) == 2
    # Same size and time, another file.
    stat = model.stat()
    copy = shutil.copy(model, tmp_path / "copy.gguf")
    os.utime(copy, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(copy, model)
    assert fingerprint_model(model) == first
    assert len(hashed) == 3


def test_a_touched_later_part_is_noticed(tmp_path, hashed):
    split = write_tiny_model(tmp_path / "split.gguf", num_layers=1, split_max_tensors=4)
    fingerprint_model(split)
    os.utime(GGUFFile.open(split).parts[-1], ns=(1, 1))
    fingerprint_model(split)
    assert len(hashed) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b'{"version": "x"}', b"\xff\xfe"])
def test_a_damaged_sidecar_costs_only_time(model, hashed, cache, caplog, content):
    first = fingerprint_model(model)
    (sidecar,) = cache.iterdir()
    sidecar.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert fingerprint_model(model) == first
    assert "is unusable" in caplog.text
    assert fingerprint_model(model) == first
    assert len(hashed) == 2


def test_a_sidecar_of_another_version_is_not_believed(model, hashed, cache):
    first = fingerprint_model(model)
    (sidecar,) = cache.iterdir()
    old = msgspec.json.decode(sidecar.read_bytes())
    old["version"] = 0
    old["fingerprint"]["tensors"] = "0" * 64
    sidecar.write_bytes(msgspec.json.encode(old))
    assert fingerprint_model(model) == first


def test_an_unusable_cache_directory_costs_only_time(tmp_path, model, monkeypatch, caplog):
    want = fingerprint_model(model)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert fingerprint_model(model) == want
    assert "fingerprint not cached" in caplog.text


def test_a_missing_model_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        fingerprint_model(tmp_path / "none.gguf")
