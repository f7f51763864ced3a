"""Safetensors files of the store: a checksum for every tensor, checked when its bytes are first read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec
from safetensors import SafetensorError, safe_open

from engine.errors import StoreError, first_line
from engine.remedies import Advice, Remedy
from engine.store.files import open_regular

if TYPE_CHECKING:
    from torch import Tensor

CHECKSUMS = "sha256"
"""Key of the metadata: JSON of tensor name to the SHA-256 of its bytes; other metadata is covered by its own key."""

_BEFORE_CHECKSUMS = {"layerscope"}  # all metadata that versions without checksums wrote
_LARGEST_HEADER = 8 * 2**20  # far above what thousands of layers need
_ALIGNMENT = 8  # of the tensors in a file
# Names of torch's dtypes in the format, in the order of the file: larger elements first, so that all are aligned.
_KINDS = {
    "int64": "I64",
    "float64": "F64",
    "float32": "F32",
    "int32": "I32",
    "bfloat16": "BF16",
    "float16": "F16",
    "uint8": "U8",
}
_CHUNK = 2**20
_MOST_FILES = 50_000

_Stamp = tuple[int, int, int]
_checked: dict[str, tuple[_Stamp, set[str]]] = {}


class _Entry(msgspec.Struct):
    """Where a tensor is in the file, from the header."""

    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class TensorFile:
    """A checked safetensors file whose header has been read.

    Attributes:
        path: The file.
        metadata: Its metadata.
        places: Tensor to the range of its bytes in the file.
        checksums: Tensor to checksum; empty for a file from before checksums.
        stamp: Modification time, size and inode when the header was read.
    """

    path: Path
    metadata: dict[str, str]
    places: dict[str, tuple[int, int]]
    checksums: dict[str, str]
    stamp: _Stamp


def with_checksums(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> dict[str, str]:
    """Metadata with the checksums of the tensors and of the metadata itself.

    Args:
        tensors: Name to tensor, contiguous and on the CPU.
        metadata: Further metadata.
    """
    texts = dict(metadata or {})
    sums = {name: _digest(tensor) for name, tensor in tensors.items()}
    sums |= {name: _digest_text(text) for name, text in texts.items()}
    return texts | {CHECKSUMS: msgspec.json.encode(dict(sorted(sums.items()))).decode()}


def encode_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """Encode tensors as the parts of a safetensors file, without copying them.

    The file is the same, byte for byte, as that of `safetensors.torch.save`, which needs memory for two copies.

    Args:
        tensors: Name to tensor, on the CPU; they must not change until the parts are written.
        metadata: The metadata.
    """
    kinds = {name: _KINDS[str(tensor.dtype).removeprefix("torch.")] for name, tensor in tensors.items()}
    order = [*_KINDS.values()]
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    parts, begin = [], 0
    for name in sorted(tensors, key=lambda name: (order.index(kinds[name]), name)):
        content = _content(tensors[name])
        end = begin + content.nbytes
        header[name] = {"dtype": kinds[name], "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
        parts.append(content)
        begin = end
    encoded = msgspec.json.encode(header)
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    return [len(encoded).to_bytes(8, "little"), encoded, *parts]


def read_tensors(path: Path, names: list[str], *, store: Path, remedy: Remedy | Advice) -> list[Tensor]:
    """Read tensors, memory-mapped; check each against its checksum when this process first reads it.

    Args:
        path: The file.
        names: The tensors.
        store: The store folder, which links must not leave.
        remedy: What to do about a damaged file.

    Raises:
        StoreError: The file is missing, damaged, not a regular file or outside the store.
    """
    with said_as_damage(path, remedy):
        file = _read_header(path, store)
        with safe_open(path, framework="pt") as opened:
            tensors: dict[str, Tensor] = {name: opened.get_tensor(name) for name in names}
        for name, tensor in tensors.items():
            _check(file, name, partial(_digest, tensor))
        return list(tensors.values())


def read_metadata(path: Path, *, store: Path, remedy: Remedy | Advice) -> TensorFile:
    """Read the header of a file and check its metadata; loads no torch.

    Args:
        path: The file.
        store: The store folder, which links must not leave.
        remedy: What to do about a damaged file.

    Raises:
        StoreError: The file is missing, damaged, not a regular file or outside the store.
    """
    with said_as_damage(path, remedy):
        file = _read_header(path, store)
        for name, text in file.metadata.items():
            if name != CHECKSUMS:
                _check(file, name, partial(_digest_text, text))
        return file


def verify_file(path: Path, *, store: Path, remedy: Remedy | Advice) -> bool:
    """Check every tensor of a file against its checksum, from disk and in bounded memory; loads no torch.

    Args:
        path: The file.
        store: The store folder, which links must not leave.
        remedy: What to do about a damaged file.

    Returns:
        Whether the file has checksums; a file from before checksums has none.

    Raises:
        StoreError: The file is missing, damaged, not a regular file or outside the store.
    """
    found = read_metadata(path, store=store, remedy=remedy)
    with said_as_damage(path, remedy), open_regular(path, store) as file:
        for name, (start, end) in found.places.items():
            _require_equal(found, name, _digest_range(file, start, end))
    return bool(found.checksums)


def _read_header(path: Path, store: Path) -> TensorFile:
    with open_regular(path, store) as file:
        status = os.fstat(file.fileno())
        length = int.from_bytes(file.read(8), "little")
        if length > min(_LARGEST_HEADER, status.st_size - 8):
            raise ValueError(f"a header of {length} bytes in a file of {status.st_size}")
        header = file.read(length)
    with safe_open(path, framework="np") as opened:  # checks types, shapes and ranges
        metadata: dict[str, str] = opened.metadata() or {}
        names = set(opened.keys())
    entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
    places = {name: msgspec.json.decode(entries[name], type=_Entry).data_offsets for name in names}
    text = metadata.get(CHECKSUMS)
    if text is None and metadata.keys() - _BEFORE_CHECKSUMS:
        raise ValueError("its checksums are missing")
    checksums = {} if text is None else msgspec.json.decode(text, type=dict[str, str])
    lost = {*names, *metadata} - {CHECKSUMS} - checksums.keys()
    if text is not None and lost:
        raise ValueError(f"no checksum for {', '.join(sorted(lost)[:3])}")
    start = 8 + length
    moved = {name: (start + first, start + last) for name, (first, last) in places.items()}
    return TensorFile(path, metadata, moved, checksums, (status.st_mtime_ns, status.st_size, status.st_ino))


def _check(file: TensorFile, name: str, digest: Callable[[], str]) -> None:
    """Compare a checksum, once for each version of a file in this process."""
    stamp, checked = _checked.get(str(file.path), (None, set[str]()))
    if stamp != file.stamp:
        checked = set()
    if name in checked:
        return
    _require_equal(file, name, digest())
    if len(_checked) >= _MOST_FILES:
        _checked.clear()
    _checked[str(file.path)] = file.stamp, {*checked, name}


def _require_equal(file: TensorFile, name: str, digest: str) -> None:
    if file.checksums and file.checksums[name] != digest:
        raise ValueError(f"{name!r} does not match its checksum: bytes have changed since it was saved")


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(_content(tensor)).hexdigest()


def _content(tensor: Tensor) -> memoryview:
    """The bytes of a tensor; of a contiguous one, without a copy."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _digest_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_range(file: BinaryIO, start: int, end: int) -> str:
    digest = hashlib.sha256()
    file.seek(start)
    while start < end and (part := file.read(min(_CHUNK, end - start))):
        digest.update(part)
        start += len(part)
    return digest.hexdigest()


@contextmanager
def said_as_damage(path: Path, remedy: Remedy | Advice) -> Iterator[None]:
    """Turn what reading a damaged file raises into an error that names the file and what to do.

    Args:
        path: The file.
        remedy: What to do about it.

    Raises:
        StoreError: In place of any error of the file's contents.
    """
    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise StoreError(f"{path} is missing", next_step=remedy) from error
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, msgspec.DecodeError) as error:
        raise StoreError(f"{path} is damaged: {first_line(error)}", next_step=remedy) from error
