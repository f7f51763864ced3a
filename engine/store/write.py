"""Write captures: whole or not at all, and never over an earlier one unless asked."""

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

from engine.errors import Remedy, StoreError
from engine.records.captures import CaptureData
from engine.records.files import DataFile
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

    The `.pt` holds the how-to's dictionaries and nothing else, so that `torch.load` with its safe defaults reads it;
    the JSON holds the rest: provenance, factors, statistics. Both are written beside their final place and moved there
    when complete. An interrupted save leaves what was there before, or tensors without a record, which the catalogue
    shows as such; never half a file under a capture's name.

    Args:
        data: What a capture function returned.
        name: A path without suffix, as in "my_activations"; a plain name when `store` is given.
        store: The folder to save into.
        force: Whether an existing capture of that name may be replaced.
        steps: Told of what is looked for in a contrast; what it raises ends the save, and nothing is
            saved.

    Returns:
        Where the files lie.

    Raises:
        StoreError: The name is taken or not allowed, or the folder cannot be written.

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
            # Without a record there is no capture: it goes first and comes back last, so that no record ever stands
            # beside tensors that it does not describe.
            paths.record.unlink(missing_ok=True)
            remove_shards(paths)
            tensors.replace(paths.tensors)
            record.replace(paths.record)
        _sync_folder(paths.store)
    return paths


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        StoreError: It cannot be written; what was there before still is.
    """
    with _readable_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _unfinished(path) as unfinished:
            _fill(unfinished, lambda out: out.write(content), path.name)
            unfinished.replace(path)
        _sync_folder(path.parent)


def _plain(value: Any) -> Any:  # noqa: ANN401 - walks dictionaries, lists and tensors alike
    """The how-to's dictionaries alone, every tensor with no more memory behind it than it shows."""
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
    """A hidden file beside its final place, gone at the end unless it has been moved there."""
    path = final.with_name(f".{final.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _fill(path: Path, write: Callable[[BinaryIO], object], final_name: str) -> DataFile:
    """Write a file through to the disk and take its fingerprint."""
    with path.open("x+b") as out:
        try:
            write(out)
        except RuntimeError as error:  # torch's, in place of what the system said
            raise _system_error(error) from error
        out.flush()
        os.fsync(out.fileno())
        out.seek(0)
        digest = hashlib.file_digest(out, "sha256").hexdigest()
    return DataFile(name=final_name, bytes=path.stat().st_size, sha256=digest)


def _system_error(error: BaseException) -> BaseException:
    """What the system said before an error, if it said anything."""
    before = error.__cause__ or error.__context__
    while before is not None and not isinstance(before, OSError):
        before = before.__cause__ or before.__context__
    return before or error


def _sync_folder(folder: Path) -> None:
    """Make the renames last through a power cut; not every system can open a folder."""
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
            expected="a folder that can be written, with room for the capture",
            next_step=Remedy.SAVE_LESS,
        ) from error
