"""Write captures atomically; replace an existing one only on request."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from engine.errors import StoreError
from engine.records.captures import CaptureData
from engine.records.files import DataFile
from engine.remedies import Remedy
from engine.runtime import Steps
from engine.store.names import UNFINISHED, CapturePaths, locate, require_free
from engine.store.plan import remove_shards
from engine.store.record import encode_record, make_record

_ONLY_IN_RECORD = {"provenance", "factors"}


def save_activations(
    data: CaptureData,
    name: str | Path,
    *,
    store: str | Path | None = None,
    force: bool = False,
    steps: Steps | None = None,
) -> CapturePaths:
    """Save a capture as `NAME.pt` and `NAME.json`.

    The `.pt` holds only the how-to's dictionaries, so `torch.load` reads it with its safe defaults. The JSON holds
    everything else: provenance, factors, statistics. Both are written to temporary files in the same folder and then
    renamed. An interrupted save leaves either the previous capture or tensors without a record, which the catalog
    reports; it never leaves a partial file under a capture's name.

    Args:
        data: The return value of a capture function.
        name: A path without suffix, such as "my_activations"; a plain name when `store` is given.
        store: The store folder.
        force: Replace an existing capture of that name.
        steps: Called with each analysis step of a contrast; an exception it raises stops the save, and nothing is
            saved.

    Returns:
        Paths of the saved files.

    Raises:
        StoreError: The name is taken or invalid, or the folder cannot be written.

    Example:
        >>> save_activations(data, "my_activations").tensors.name
        'my_activations.pt'
    """
    paths = locate(name, store)
    require_free(paths, force=force)
    with _readable_errors(paths.store):
        paths.store.mkdir(parents=True, exist_ok=True)
        with _unfinished(paths.tensors) as tensors, _unfinished(paths.record) as record:
            file = _fill(tensors, lambda out: torch.save(_plain(data), out), paths.tensors.name)
            content = encode_record(make_record(data, paths.name, file, steps))
            _fill(record, lambda out: out.write(content), paths.record.name)
            # Remove the old record first and add the new one last, so that no record ever describes other tensors.
            paths.record.unlink(missing_ok=True)
            remove_shards(paths)
            tensors.replace(paths.tensors)
            record.replace(paths.record)
        _sync_folder(paths.store)
    return paths


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        StoreError: The file cannot be written; a previous file is unchanged.
    """
    with _readable_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _unfinished(path) as unfinished:
            _fill(unfinished, lambda out: out.write(content), path.name)
            unfinished.replace(path)
        _sync_folder(path.parent)


def _plain(value: Any) -> Any:  # noqa: ANN401 - walks dictionaries, lists and tensors alike
    """Keep only the how-to's dictionaries, and clone views of larger tensors."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items() if key not in _ONLY_IN_RECORD}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, Tensor):
        shown = value.numel() * value.element_size()
        return value if value.untyped_storage().nbytes() == shown else value.clone()
    return value


@contextmanager
def _unfinished(final: Path) -> Iterator[Path]:
    """A hidden temporary file next to the final path, deleted unless renamed."""
    path = final.with_name(f".{final.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _fill(path: Path, write: Callable[[BinaryIO], object], final_name: str) -> DataFile:
    """Write a file, sync it to disk and return its checksum."""
    with path.open("x+b") as out:
        try:
            write(out)
        except RuntimeError as error:  # torch raises it in place of the OSError
            raise _system_error(error) from error
        out.flush()
        os.fsync(out.fileno())
        out.seek(0)
        digest = hashlib.file_digest(out, "sha256").hexdigest()
    return DataFile(name=final_name, bytes=path.stat().st_size, sha256=digest)


def _system_error(error: BaseException) -> BaseException:
    """The OSError that caused an error; the error itself if there is none."""
    before = error.__cause__ or error.__context__
    while before is not None and not isinstance(before, OSError):
        before = before.__cause__ or before.__context__
    return before or error


def _sync_folder(folder: Path) -> None:
    """Make renames survive a power failure, on systems that can open a folder."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _readable_errors(store: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"nothing was saved in {store}: {error.strerror or error}",
            expected="a writable folder with enough disk space for the capture",
            next_step=Remedy.SAVE_LESS,
        ) from error
