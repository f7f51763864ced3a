"""Read the `.pt` file of a capture: examine the archive first, then unpickle it without running any code.

`torch.load` unpacks compressed entries and builds every object that a pickle asks for, so a small file could fill the
memory. Here nothing is unpickled that `torch.save` would not have written for tensors, lists, dictionaries and plain
values.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch

from engine.errors import StoreError, first_line, out_of_memory
from engine.remedies import Advice, Remedy
from engine.store.files import open_regular
from engine.store.names import store_words

_LARGEST_PICKLE = 256 * 1024 * 1024  # bytes; about two million tensors
_ZIP = b"PK\x03\x04"

_ALLOWED = 16, 64 * 1024 * 1024  # memory for objects other than states: this many bytes per byte of the file, and more

_STORAGES = "Float Half BFloat16 Double Long Int Short Char Byte Bool"
_GLOBALS = {b"collections\nOrderedDict", b"torch._utils\n_rebuild_tensor_v2"} | {
    f"torch\n{kind}Storage".encode() for kind in _STORAGES.split()
}

# Opcode to the length of its argument and the approximate memory of what it makes, in bytes.
_OPCODES = {
    ord(code): (length, cost)
    for codes, length, cost in (
        (
            "N\x88\x89)aesubtQ.",
            0,
            64,
        ),  # None, True, False, (), append(s), setitem(s), build, tuple, persistent id, stop
        ("](}\x85\x86\x87", 0, 64),  # list, mark, dictionary, tuples of one to three
        ("R", 0, 512),  # a tensor or an ordered dictionary
        ("\x80h", 1, 8),  # protocol, memo lookup
        ("j", 4, 8),
        ("q", 1, 100),  # memo entry
        ("r", 4, 100),
        ("K", 1, 8),  # whole numbers, then a float
        ("M", 2, 32),
        ("J", 4, 32),
        ("G", 8, 24),
    )
    for code in codes
}
_TEXT, _LONG, _GLOBAL, _STOP = ord("X"), 0x8A, ord("c"), ord(".")


class _RefusedError(Exception):
    """Something that `torch.save` does not write for a capture."""


def load_archive(path: Path, store: Path, checksum: str | None) -> object:
    """Read a `.pt` file within memory in proportion to its size.

    Args:
        path: The file.
        store: The store folder, which links must not leave.
        checksum: SHA-256 that the file must have, checked before anything is unpickled; None if unknown.

    Returns:
        The object in the file, unchecked.

    Raises:
        StoreError: The file does not exist, has another checksum, or is not an archive of tensors and plain values.
        MemoryError: The tensors do not fit in memory.
    """
    try:
        with open_regular(path, store) as file:
            if checksum is not None and hashlib.file_digest(file, "sha256").hexdigest() != checksum:
                raise StoreError(
                    f"{path.stem}.json does not match the tensors in {path}: one is damaged, or from another save",
                    expected="two files from the same save; without the .json file, the tensors load on their own",
                    next_step=Remedy.CAPTURE_AGAIN,
                )
            return unpickle(file)
    except FileNotFoundError as error:
        listed = Advice(Remedy.LIST_CAPTURES, store_words(path.parent))
        raise StoreError(f"there is no capture at {path}", next_step=listed) from error
    except StoreError:
        raise
    except Exception as error:  # a hostile file makes zipfile and torch raise almost any type
        if out_of_memory(error):
            raise MemoryError(f"there is not enough memory to load {path}") from error
        raise StoreError(
            f"{path} is damaged, or holds more than tensors and plain values; no code in it was run"
            f" ({first_line(error)})",
            expected="a file written by layerscope",
            next_step=Remedy.CAPTURE_AGAIN,
        ) from error


def unpickle(file: BinaryIO) -> object:
    """Read an open `.pt` file of tensors and plain values, without running any code in it.

    Raises:
        Exception: Of almost any type, if the file is not such an archive.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    if file.read(len(_ZIP)) != _ZIP:
        raise _RefusedError("it is not a zip archive")
    with zipfile.ZipFile(file) as archive:
        _require_allowed(_pickle_in(archive, size), _ALLOWED[0] * size + _ALLOWED[1])
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def _pickle_in(archive: zipfile.ZipFile, size: int) -> bytes:
    """The pickle of an archive whose entries are stored as they are and fit in the file."""
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise _RefusedError("its entries are compressed")
    if sum(entry.file_size for entry in entries) > size or len({*archive.namelist()}) < len(entries):
        raise _RefusedError("its entries overlap")
    pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
    if len(pickles) != 1:
        raise _RefusedError(f"it has {len(pickles)} pickles")
    if pickles[0].file_size > _LARGEST_PICKLE:
        raise _RefusedError("its pickle is too large")
    return archive.read(pickles[0])


def _require_allowed(content: bytes, most: int) -> None:
    """Refuse a pickle with other opcodes or globals than those of a capture, or one that needs too much memory."""
    position = cost = 0
    end = len(content)
    while position < end and cost <= most:
        code = content[position]
        known = _OPCODES.get(code)
        if known is not None:
            position += 1 + known[0]
            cost += known[1]
            if code == _STOP:
                break
        elif code == _TEXT:
            length = int.from_bytes(content[position + 1 : position + 5], "little")
            position += 5 + length
            cost += 64 + 4 * min(length, end)
        elif code == _GLOBAL:
            position = _after_global(content, position + 1)
        elif code == _LONG and position + 1 < end:
            position += 2 + content[position + 1]
            cost += 300
        else:
            raise _RefusedError(f"its pickle has the opcode {bytes([code])!r}")
    if cost > most:
        raise _RefusedError("its pickle needs far more memory than its tensors")
    if position > end or content[-1:] != b".":
        raise _RefusedError("its pickle is truncated")


def _after_global(content: bytes, start: int) -> int:
    middle = content.find(b"\n", start)
    end = content.find(b"\n", middle + 1)
    if middle < 0 or end < 0 or content[start:end] not in _GLOBALS:
        raise _RefusedError(f"its pickle names {content[start : start + 40]!r}")
    return end + 1
