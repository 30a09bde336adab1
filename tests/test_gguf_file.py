import shutil
import struct
import tracemalloc

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import write_tiny_model

from hetero.errors import ModelError
from hetero.model import gguf_file
from hetero.model.gguf_file import GGUFFile


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("gguf") / "tiny.gguf", num_layers=1)


@pytest.fixture(scope="module")
def header(tiny):
    """The bytes up to the tensor data."""
    start = min(tensor.offset for tensor in GGUFFile.open(tiny).tensors.values())
    return tiny.read_bytes()[:start]


def write_gguf(path, *, keys=(), tensors=(), version=3, num_keys=None, num_tensors=None, data=b""):
    """A GGUF file by hand, so that it can lie. Keys and tensors are bytes already."""
    counts = (
        len(tensors) if num_tensors is None else num_tensors,
        len(keys) if num_keys is None else num_keys,
    )
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


def string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def uint32_key(key, value):
    return string(key) + struct.pack("<II", gguf.GGUFValueType.UINT32, value)


def tensor_row(name, dims, kind=0, offset=0):
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


@pytest.mark.parametrize("weight_type", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q6_k"])
def test_agrees_with_the_gguf_package(tmp_path, weight_type):
    path = write_tiny_model(tmp_path / "m.gguf", num_layers=1, weight_type=weight_type)
    ours, theirs = GGUFFile.open(path), gguf.GGUFReader(path)
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            assert ours.metadata[key] == field.contents(), key
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        have = ours.tensors[tensor.name]
        assert have.shape == tuple(reversed(tensor.shape.tolist()))
        assert (have.type, have.num_bytes) == (tensor.tensor_type, tensor.n_bytes)
        assert ours.read(tensor.name).tobytes() == tensor.data.tobytes()
        want = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(ours.dequantize(tensor.name), want)


@pytest.mark.parametrize("weight_type", ["f16", "q4_0"])
def test_dequantizing_in_small_blocks_changes_nothing(tmp_path, monkeypatch, weight_type):
    path = write_tiny_model(
        tmp_path / "m.gguf", architecture="qwen3moe", num_layers=1, weight_type=weight_type
    )
    model = GGUFFile.open(path)
    names = ["token_embd.weight", "blk.0.ffn_down_exps.weight", "output_norm.weight"]
    whole = [model.dequantize(name) for name in names]
    # 7 rows: the last block of 512 rows is a short one.
    monkeypatch.setattr(gguf_file, "DEQUANTIZE_BLOCK_VALUES", 7 * 256)
    for name, values in zip(names, whole, strict=True):
        np.testing.assert_array_equal(model.dequantize(name), values)


def test_dequantizing_needs_little_more_memory_than_the_result(tmp_path, monkeypatch):
    path = write_tiny_model(tmp_path / "m.gguf", num_layers=0, vocab=20_000, weight_type="q8_0")
    model = GGUFFile.open(path)
    monkeypatch.setattr(gguf_file, "DEQUANTIZE_BLOCK_VALUES", 2**16)
    tracemalloc.start()
    values = model.dequantize("token_embd.weight")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert values.nbytes == 20_000 * 256 * 4
    assert peak_bytes < values.nbytes + 4 * 2**20


def test_expert_tensors_keep_their_three_axes(tmp_path):
    path = write_tiny_model(
        tmp_path / "m.gguf", architecture="qwen3moe", num_layers=1, weight_type="q8_0"
    )
    model = GGUFFile.open(path)
    name = "blk.0.ffn_gate_exps.weight"
    assert model.tensors[name].shape == (4, 384, 256)
    assert model.read(name).shape == (4, 384, 256 // 32 * 34)
    assert model.dequantize(name).shape == (4, 384, 256)


def test_split_files_read_as_one(tmp_path, tiny):
    first = write_tiny_model(tmp_path / "tiny.gguf", num_layers=1, split_max_tensors=5)
    whole, split = GGUFFile.open(tiny), GGUFFile.open(first)
    assert len(split.parts) == 3
    assert list(split.tensors) == list(whole.tensors)
    for name in whole.tensors:
        np.testing.assert_array_equal(split.read(name), whole.read(name))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda parts: parts[1].unlink(), "00002-of-00003.gguf: missing: part 2 of 3"),
        (lambda parts: shutil.copy(parts[1], parts[2]), "need part 3 of 3, the file says 2 of 3"),
        (lambda parts: parts[2].write_bytes(b"GGUF"), "00003-of-00003.gguf: truncated"),
    ],
)
def test_a_damaged_split_names_the_part(tmp_path, damage, message):
    first = write_tiny_model(tmp_path / "m.gguf", num_layers=1, split_max_tensors=5)
    damage(GGUFFile.open(first).parts)
    with pytest.raises(ModelError, match=message):
        GGUFFile.open(first)


def test_a_later_part_says_which_to_open(tmp_path):
    first = write_tiny_model(tmp_path / "m.gguf", num_layers=1, split_max_tensors=5)
    second = GGUFFile.open(first).parts[1]
    with pytest.raises(ModelError, match=r"part 2 of 3: open .*m-00001-of-00003\.gguf instead"):
        GGUFFile.open(second)


def test_a_renamed_part_asks_for_its_name(tmp_path):
    first = write_tiny_model(tmp_path / "m.gguf", num_layers=1, split_max_tensors=5)
    renamed = first.rename(tmp_path / "model.gguf")
    with pytest.raises(ModelError, match=r"must end in -0000N-of-00003\.gguf"):
        GGUFFile.open(renamed)


def test_a_missing_file_and_a_directory(tmp_path):
    with pytest.raises(ModelError, match=r"none\.gguf: no such file"):
        GGUFFile.open(tmp_path / "none.gguf")
    with pytest.raises(ModelError, match="a directory"):
        GGUFFile.open(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"\x7fELF" + bytes(60), "not a GGUF file"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(16), "version: need 2 or 3, have 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "big-endian"),
        (b"GGUF" + struct.pack("<I", 3), "truncated in its header at number of tensors"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        GGUFFile.open(path)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"num_tensors": 2**60}, "number of tensors: at most"),
        ({"num_keys": 2**60}, "number of keys: at most"),
        ({"keys": [struct.pack("<Q", 2**50)]}, "length of a key: at most"),
        (
            {"keys": [string("k") + struct.pack("<IIQ", 9, 4, 2**40)]},
            "length of k: at most",
        ),
        ({"keys": [string("k") + struct.pack("<IIQ", 9, 9, 1)]}, "arrays of arrays"),
        ({"keys": [string("k") + struct.pack("<I", 77)]}, "'k' has unknown type 77"),
        ({"keys": [uint32_key("k", 1), uint32_key("k", 2)]}, "'k' appears twice"),
        ({"keys": [uint32_key("general.alignment", 24)]}, "need a power of two, have 24"),
        ({"tensors": [tensor_row("t", [32] * 5)]}, "need 1 to 4 dimensions, have 5"),
        ({"tensors": [tensor_row("t", [32, 0])]}, "'t' has no values"),
        ({"tensors": [tensor_row("t", [32], kind=99)]}, "'t' has type 99"),
        ({"tensors": [tensor_row("t", [33], kind=8)]}, "rows of Q8_0 need a multiple of 32"),
        ({"tensors": [tensor_row("t", [8])] * 2, "data": bytes(64)}, "'t' appears twice"),
        ({"tensors": [tensor_row("t", [2**40] * 4)]}, "truncated: tensor 't' needs"),
    ],
)
def test_lies_in_the_header_are_refused(tmp_path, lie, message):
    with pytest.raises(ModelError, match=message):
        GGUFFile.open(write_gguf(tmp_path / "m.gguf", **lie))


def test_truncated_data_says_need_and_have(tmp_path, tiny):
    content = tiny.read_bytes()
    path = tmp_path / "m.gguf"
    path.write_bytes(content[:-1])
    need, have = len(content), len(content) - 1
    with pytest.raises(ModelError, match=f"needs {need} bytes of file, have {have}"):
        GGUFFile.open(path)


def test_a_file_that_shrinks_after_opening_is_an_error(tmp_path, tiny):
    path = shutil.copy(tiny, tmp_path / "m.gguf")
    model = GGUFFile.open(path)
    with open(path, "r+b") as file:
        file.truncate(model.tensors["output.weight"].offset + 100)
    with pytest.raises(ModelError, match="have 100: the file changed"):
        model.read("output.weight")
    with pytest.raises(ModelError, match="have 100: the file changed"):
        model.dequantize("output.weight")


def test_types_without_a_dequantizer_name_the_way_out(tmp_path):
    row = tensor_row("t", [4], kind=gguf.GGMLQuantizationType.I32)
    model = GGUFFile.open(write_gguf(tmp_path / "m.gguf", tensors=[row], data=bytes(16)))
    with pytest.raises(ModelError, match=r"'t' has type I32.*use --prefill llama"):
        model.dequantize("t")
    with pytest.raises(ModelError, match="no tensor 'u'"):
        model.read("u")


def test_tokens_that_are_not_utf8_stay_distinct(tmp_path):
    tokens = b"".join(struct.pack("<Q", 1) + token for token in (b"\xff", b"\xfe"))
    key = string("tokens") + struct.pack("<IIQ", 9, 8, 2) + tokens
    first, second = GGUFFile.open(write_gguf(tmp_path / "m.gguf", keys=[key])).metadata["tokens"]
    assert first != second


def test_a_header_cut_anywhere_is_a_model_error(tmp_path, header):
    path = tmp_path / "m.gguf"
    # Every cut would be 10k files; a prime step still lands in each kind of field.
    for length in range(0, len(header), 37):
        path.write_bytes(header[:length])
        with pytest.raises(ModelError):
            GGUFFile.open(path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_flipped_bytes_open_or_are_model_errors(tmp_path_factory, tiny, header, data):
    content = bytearray(header)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "flipped.gguf"
    path.write_bytes(bytes(content) + tiny.read_bytes()[len(header) :])
    try:
        model = GGUFFile.open(path)
    except ModelError:
        return
    for name in model.tensors:
        model.read(name)
