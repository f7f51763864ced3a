"""GGUF control vectors: written with the `gguf` package, read within bounds."""

from __future__ import annotations

import re
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
from numpy.typing import NDArray

from engine.models.files import GGUF_ARRAY, GGUF_NUMBERS, GGUF_TEXT

ARCHITECTURE = "controlvector"
UNIT_KEY = "layerscope.unit"

_MOST_ENTRIES = 2000  # twice the blocks of the deepest model that is accepted
_LONGEST_TEXT = 2**16
_LARGEST_ARRAY = 2**20  # entries of an array in the metadata
_WIDEST = 2**20
_VERSIONS = (2, 3)
_F32 = 0
_NAME = re.compile(r"direction\.([1-9][0-9]{0,5})")

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class VectorFile:
    """Contents of a GGUF control vector.

    Attributes:
        vectors: K to the vector `direction.K`, `(hidden,)`.
        metadata: Texts and numbers of the metadata.
    """

    vectors: dict[int, Vector]
    metadata: dict[str, object]


def gguf_bytes(vectors: Mapping[int, Vector], metadata: Mapping[str, str]) -> bytes:
    """Encode vectors as llama.cpp and repeng read them.

    Args:
        vectors: K, from 1, to the vector added after block K.
        metadata: Further texts.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.gguf"
        writer = gguf.GGUFWriter(path, ARCHITECTURE)
        for key, text in metadata.items():
            writer.add_string(key, text)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vectors))
        for layer, vector in sorted(vectors.items()):
            writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(vector, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def read_gguf(file: BinaryIO, size: int) -> VectorFile:
    """Read a control vector; refuse what llama.cpp refuses.

    Args:
        file: The open file, at its beginning.
        size: Its size in bytes.

    Raises:
        ValueError: It is not a control vector, or it is damaged.
    """
    return _Reader(file, size).read()


class _Reader:
    """Reads a file whose counts and lengths cannot be trusted."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def read(self) -> VectorFile:
        if self._file.read(4) != b"GGUF":
            raise ValueError("it is not a GGUF file")
        if (version := self._number("<I")) not in _VERSIONS:
            raise ValueError(f"it has version {version} of the format, or another byte order")
        tensors, entries = self._bounded("tensors"), self._bounded("entries of metadata")
        metadata = dict(self._entry() for _ in range(entries))
        places = [self._place() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= _LONGEST_TEXT:
            raise ValueError(f"an alignment of {alignment}")
        start = -(-self._file.tell() // alignment) * alignment
        vectors = {layer: self._vector(start + offset, width) for layer, width, offset in places}
        if len(vectors) < tensors:
            raise ValueError("a layer has two vectors")
        if not vectors:
            raise ValueError("it holds no vectors")
        return VectorFile(vectors, metadata)

    def _bytes(self, count: int) -> bytes:
        found = self._file.read(count) if count <= self._size else b""
        if len(found) < count:
            raise ValueError("it is truncated")
        return found

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._bytes(struct.calcsize(form)))[0])

    def _bounded(self, what: str) -> int:
        count = self._number("<Q")
        if count > _MOST_ENTRIES:
            raise ValueError(f"it announces {count} {what}")
        return count

    def _text(self) -> str:
        length = self._number("<Q")
        if length > _LONGEST_TEXT:
            raise ValueError(f"it announces a text of {length} bytes")
        return self._bytes(length).decode("utf-8")

    def _entry(self) -> tuple[str, object]:
        name, kind = self._text(), self._number("<I")
        if kind == GGUF_TEXT:
            return name, self._text()
        if kind == GGUF_ARRAY:
            element, count = self._number("<I"), self._number("<Q")
            if count > _LARGEST_ARRAY:
                raise ValueError(f"it announces an array of {count} entries")
            if element in GGUF_NUMBERS:
                self._bytes(count * struct.calcsize(GGUF_NUMBERS[element]))
            elif element == GGUF_TEXT:
                for _ in range(count):
                    self._text()
            else:
                raise ValueError(f"it has an array of the unknown type {element}")
            return name, None
        if kind not in GGUF_NUMBERS:
            raise ValueError(f"it has metadata of the unknown type {kind}")
        return name, struct.unpack(GGUF_NUMBERS[kind], self._bytes(struct.calcsize(GGUF_NUMBERS[kind])))[0]

    def _place(self) -> tuple[int, int, int]:
        """Layer, width and offset of a vector."""
        name, dimensions = self._text(), self._number("<I")
        if not 1 <= dimensions <= 4:
            raise ValueError(f"{name[:80]!r} has {dimensions} dimensions")
        shape = [self._number("<Q") for _ in range(dimensions)]  # the fastest dimension first
        kind, offset = self._number("<I"), self._number("<Q")
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"it holds the tensor {name[:80]!r}, expected direction.1, direction.2 and so on")
        if kind != _F32:
            raise ValueError(f"{name} is not float32")
        if not 0 < shape[0] <= _WIDEST or any(length != 1 for length in shape[1:]):
            raise ValueError(f"{name} has the shape {shape}, expected one vector")
        return int(match[1]), shape[0], offset

    def _vector(self, start: int, width: int) -> Vector:
        if start > self._size:
            raise ValueError("it is truncated")
        self._file.seek(start)
        return np.frombuffer(self._bytes(4 * width), "<f4").astype(np.float32)
