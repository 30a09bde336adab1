"""Read GGUF files, whole or split: metadata and tensor table at once, tensor data on request.

The gguf package's reader makes a numpy view per string, which takes many seconds for a vocabulary
of 128k tokens; this one takes a fraction of a second. Nothing is memory-mapped: mapped pages count
as resident memory, and a node's memory is promised to its KV cache. Reads only; files are written
by `synth` and by llama.cpp's tools.

Format: docs/gguf.md in the ggml repository, versions 2 and 3.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import gguf
import numpy as np

from hetero.errors import ModelError

# Limits keep a damaged length from becoming a huge allocation. The largest headers seen have 45k
# tensors (experts not merged), 300 keys, 1.5M merges, a chat template of 100 kB: 10x is allowed.
MAX_TENSORS = 500_000
MAX_KEYS = 10_000
MAX_ARRAY_LENGTH = 2**24
MAX_STRING_BYTES = 2**24
# ggml's own: GGML_MAX_DIMS.
MAX_DIMS = 4

# float32 values dequantized at a time. Temporaries are a few times the block: at 8 MiB they stay
# near the caches, and four times as much is half as fast.
DEQUANTIZE_BLOCK_VALUES = 2**21

_SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf")
_STRUCT_CODES = {
    gguf.GGUFValueType.UINT8: "B",
    gguf.GGUFValueType.INT8: "b",
    gguf.GGUFValueType.UINT16: "H",
    gguf.GGUFValueType.INT16: "h",
    gguf.GGUFValueType.UINT32: "I",
    gguf.GGUFValueType.INT32: "i",
    gguf.GGUFValueType.FLOAT32: "f",
    gguf.GGUFValueType.BOOL: "?",
    gguf.GGUFValueType.UINT64: "Q",
    gguf.GGUFValueType.INT64: "q",
    gguf.GGUFValueType.FLOAT64: "d",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Where a tensor's data lies. `shape` is (rows, cols) or (experts, rows, cols)."""

    name: str
    shape: tuple[int, ...]
    type: gguf.GGMLQuantizationType
    num_bytes: int
    path: Path
    offset: int

    @property
    def row_bytes(self) -> int:
        block_size, block_bytes = gguf.GGML_QUANT_SIZES[self.type]
        return int(self.shape[-1] // block_size * block_bytes)

    @property
    def num_rows(self) -> int:
        return self.num_bytes // self.row_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFFile:
    """A model file's header, or the joined headers of its parts.

    Strings that are not UTF-8 keep their bytes as surrogates, so that no two tokens look equal.
    """

    parts: tuple[Path, ...]
    metadata: Mapping[str, object]
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, path: str | Path) -> "GGUFFile":
        """Read the header of `path` and, if it is the first of several parts, of the others.

        Raises: ModelError if a file is missing, damaged, or not the first part.
        """
        first = Path(path)
        metadata, tensors = _read_header(first)
        num_parts = _split_number(first, metadata, "split.count", default=1)
        if num_parts <= 1:
            return cls(parts=(first,), metadata=metadata, tensors=tensors)
        parts = _split_parts(first, _split_number(first, metadata, "split.no"), num_parts)
        for index, part in enumerate(parts[1:], start=1):
            if not part.exists():
                raise ModelError(f"{part}: missing: part {index + 1} of {num_parts} of this model")
            part_metadata, part_tensors = _read_header(part)
            have = (
                _split_number(part, part_metadata, "split.no"),
                _split_number(part, part_metadata, "split.count"),
            )
            if have != (index, num_parts):
                raise ModelError(
                    f"{part}: need part {index + 1} of {num_parts}, the file says {have[0] + 1} of "
                    f"{have[1]}: it belongs to another model"
                )
            for name, tensor in part_tensors.items():
                if name in tensors:
                    raise ModelError(f"{part}: tensor {name!r} is in {tensors[name].path.name} too")
                tensors[name] = tensor
        need = _split_number(first, metadata, "split.tensors.count", default=len(tensors))
        if need != len(tensors):
            raise ModelError(f"{first}: need {need} tensors in all parts, have {len(tensors)}")
        return cls(parts=parts, metadata=metadata, tensors=tensors)

    def read(self, name: str) -> np.ndarray:
        """The tensor's bytes as they are stored: (..., row_bytes) uint8."""
        tensor = self._tensor(name)
        data = np.empty((*tensor.shape[:-1], tensor.row_bytes), np.uint8)
        with _open(tensor.path) as file:
            _read_into(file, tensor, data.reshape(-1), 0)
        return data

    def read_chunks(self, name: str, buffer: np.ndarray) -> Iterator[np.ndarray]:
        """The tensor's bytes in order; each chunk is a part of `buffer`, valid until the next."""
        tensor = self._tensor(name)
        with _open(tensor.path) as file:
            for start in range(0, tensor.num_bytes, buffer.nbytes):
                chunk = buffer[: min(buffer.nbytes, tensor.num_bytes - start)]
                _read_into(file, tensor, chunk, start)
                yield chunk

    def dequantize(self, name: str) -> np.ndarray:
        """The tensor's values: float32, in the tensor's shape.

        Reads and converts a block of rows at a time, so memory peaks near the size of the result.
        """
        tensor = self._tensor(name)
        values = np.empty(tensor.shape, np.float32)
        if tensor.type == gguf.GGMLQuantizationType.F32:
            with _open(tensor.path) as file:
                _read_into(file, tensor, values.reshape(-1).view(np.uint8), 0)
            return values
        rows = values.reshape(tensor.num_rows, tensor.shape[-1])
        block_rows = max(1, DEQUANTIZE_BLOCK_VALUES // tensor.shape[-1])
        with _open(tensor.path) as file:
            for start in range(0, tensor.num_rows, block_rows):
                block = rows[start : start + block_rows]
                data = np.empty((len(block), tensor.row_bytes), np.uint8)
                _read_into(file, tensor, data.reshape(-1), start * tensor.row_bytes)
                try:
                    block[:] = gguf.quants.dequantize(data, tensor.type)
                except NotImplementedError as error:
                    raise ModelError(
                        f"{tensor.path}: tensor {name!r} has type {tensor.type.name}, which the "
                        "gguf package can't dequantize: use --prefill llama"
                    ) from error
        return values

    def _tensor(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise ModelError(f"{self.parts[0]}: no tensor {name!r}")
        return self.tensors[name]


def _split_number(
    path: Path, metadata: Mapping[str, object], key: str, default: int | None = None
) -> int:
    value = metadata.get(key, default)
    if not isinstance(value, int):
        raise ModelError(f"{path}: {key}: need a number, have {value!r}")
    return value


def _split_parts(first: Path, part_no: int, num_parts: int) -> tuple[Path, ...]:
    match = _SPLIT_NAME.fullmatch(first.name)
    if match is None or int(match["count"]) != num_parts:
        raise ModelError(
            f"{first}: one of {num_parts} parts, so its name must end in "
            f"-0000N-of-{num_parts:05d}.gguf: give it back its name"
        )
    names = [f"{match['stem']}-{n:05d}-of-{num_parts:05d}.gguf" for n in range(1, num_parts + 1)]
    parts = tuple(first.with_name(name) for name in names)
    if part_no != 0 or int(match["part"]) != 1:
        raise ModelError(f"{first}: part {part_no + 1} of {num_parts}: open {parts[0]} instead")
    return parts


def _open(path: Path) -> BufferedReader:
    try:
        # A megabyte at a time: the header is small strings by the hundred thousand.
        return BufferedReader(open(path, "rb", buffering=0), 2**20)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ModelError(f"{path}: a directory, need a .gguf file in it") from None
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror}") from error


def _read_into(file: BufferedReader, tensor: TensorInfo, data: np.ndarray, start: int) -> None:
    file.seek(tensor.offset + start)
    have = file.readinto(data.data)
    if have != data.nbytes:
        raise ModelError(
            f"{tensor.path}: tensor {tensor.name!r}: need {data.nbytes} bytes at "
            f"{tensor.offset + start}, have {have}: the file changed since it was opened"
        )


def _read_header(path: Path) -> tuple[dict[str, object], dict[str, TensorInfo]]:
    with _open(path) as file:
        reader = _HeaderReader(path, file)
        num_tensors, num_keys = reader.preamble()
        metadata: dict[str, object] = {}
        for _ in range(num_keys):
            key = reader.string("a key")
            if key in metadata:
                raise ModelError(f"{path}: key {key!r} appears twice")
            metadata[key] = reader.value(key)
        rows = [reader.tensor_row() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise ModelError(f"{path}: alignment: need a power of two, have {alignment!r}")
        data_start = -(-file.tell() // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in rows:
            if name in tensors:
                raise ModelError(f"{path}: tensor {name!r} appears twice")
            tensors[name] = _locate(path, name, shape, kind, data_start + offset, reader.file_bytes)
        return metadata, tensors


def _locate(
    path: Path, name: str, shape: tuple[int, ...], kind: int, offset: int, file_bytes: int
) -> TensorInfo:
    try:
        tensor_type = gguf.GGMLQuantizationType(kind)
    except ValueError:
        raise ModelError(
            f"{path}: tensor {name!r} has type {kind}, which the gguf package doesn't know: "
            "a newer one may"
        ) from None
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[tensor_type]
    if shape[-1] % block_size:
        raise ModelError(
            f"{path}: tensor {name!r}: rows of {tensor_type.name} need a multiple of {block_size} "
            f"values, have {shape[-1]}"
        )
    num_bytes = block_bytes * (shape[-1] // block_size)
    for dim in shape[:-1]:
        num_bytes *= dim
    if offset + num_bytes > file_bytes:
        raise ModelError(
            f"{path}: truncated: tensor {name!r} needs {offset + num_bytes} bytes of file, "
            f"have {file_bytes}: download it again"
        )
    return TensorInfo(
        name=name, shape=shape, type=tensor_type, num_bytes=num_bytes, path=path, offset=offset
    )


class _HeaderReader:
    """Walks a header front to back; every length is checked before it is believed."""

    def __init__(self, path: Path, file: BufferedReader) -> None:
        self._path = path
        self._file = file
        self.file_bytes = file.seek(0, 2)
        file.seek(0)

    def preamble(self) -> tuple[int, int]:
        """Check magic and version; return the numbers of tensors and of keys."""
        if self.file_bytes == 0:
            raise ModelError(f"{self._path}: empty file")
        magic = self._file.read(4)
        if magic != b"GGUF":
            raise ModelError(f"{self._path}: not a GGUF file: it starts with {magic!r}")
        version = self._number("I", "the version")
        if version & 0xFFFF == 0:
            raise ModelError(f"{self._path}: big-endian GGUF: convert it to little-endian")
        if version not in (2, 3):
            raise ModelError(f"{self._path}: GGUF version: need 2 or 3, have {version}")
        num_tensors = self._length("number of tensors", MAX_TENSORS)
        num_keys = self._length("number of keys", MAX_KEYS)
        return num_tensors, num_keys

    def string(self, what: str) -> str:
        length = self._length(f"length of {what}", MAX_STRING_BYTES)
        return self._bytes(length, what).decode("utf-8", "surrogateescape")

    def value(self, key: str) -> object:
        kind = self._value_type(key)
        if kind == gguf.GGUFValueType.STRING:
            return self.string(key)
        if kind != gguf.GGUFValueType.ARRAY:
            return self._number(_STRUCT_CODES[kind], key)
        kind = self._value_type(key)
        length = self._length(f"length of {key}", MAX_ARRAY_LENGTH)
        if kind == gguf.GGUFValueType.STRING:
            return [self.string(key) for _ in range(length)]
        if kind == gguf.GGUFValueType.ARRAY:
            raise ModelError(f"{self._path}: key {key!r}: arrays of arrays are not supported")
        layout = struct.Struct(f"<{length}{_STRUCT_CODES[kind]}")
        return list(layout.unpack(self._bytes(layout.size, key)))

    def tensor_row(self) -> tuple[str, tuple[int, ...], int, int]:
        """One line of the tensor table: name, numpy shape, type, offset from the data's start."""
        name = self.string("a tensor name")
        num_dims = self._number("I", name)
        if not 1 <= num_dims <= MAX_DIMS:
            raise ModelError(
                f"{self._path}: tensor {name!r}: need 1 to {MAX_DIMS} dimensions, have {num_dims}"
            )
        dims = [self._number("Q", name) for _ in range(num_dims)]
        if min(dims) == 0:
            raise ModelError(f"{self._path}: tensor {name!r} has no values: {dims}")
        return name, tuple(reversed(dims)), self._number("I", name), self._number("Q", name)

    def _value_type(self, key: str) -> gguf.GGUFValueType:
        number = self._number("I", key)
        try:
            return gguf.GGUFValueType(number)
        except ValueError:
            raise ModelError(f"{self._path}: key {key!r} has unknown type {number}") from None

    def _length(self, what: str, limit: int) -> int:
        length = self._number("Q", what)
        if length > limit:
            raise ModelError(
                f"{self._path}: {what}: at most {limit}, have {length}: the file is damaged"
            )
        return length

    def _number(self, code: str, what: str) -> int:
        size = struct.calcsize("<" + code)
        (number,) = struct.unpack("<" + code, self._bytes(size, what))
        return number  # type: ignore[no-any-return]

    def _bytes(self, count: int, what: str) -> bytes:
        data = self._file.read(count)
        if len(data) != count:
            need = self._file.tell() - len(data) + count
            raise ModelError(
                f"{self._path}: truncated in its header at {what}: need {need} bytes, "
                f"have {self.file_bytes}: download it again"
            )
        return data
