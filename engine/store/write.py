"""Write captures atomically; replace an existing one only on request."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from engine.errors import StoreError
from engine.records.captures import CaptureData
from engine.records.checks import require_capture
from engine.records.files import CaptureRecord, DataFile
from engine.remedies import Remedy
from engine.runtime import Steps
from engine.stats.contrast import require_contrast
from engine.stats.summary import prompts_of
from engine.store.locks import folder_lock
from engine.store.names import CapturePaths, locate
from engine.store.ownership import drop_directions, require_amendable, require_free
from engine.store.plan import remove_shards, require_not_held
from engine.store.record import decode_whole, encode_record, make_record, read_record
from engine.store.replace import delete_unfinished, put_in_place, telling_loss
from engine.store.unfinished import TakenError, UnfinishedFile, clear_leftovers, unfinished

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last one is a limit on the size of files
_ONLY_IN_RECORD = {"provenance", "factors", "response"}


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
        RequestError: This is not a capture, or the parts of a contrast do not match.
        StoreError: The name is taken or invalid, or the folder cannot be written.

    Example:
        >>> save_activations(data, "my_activations").tensors.name
        'my_activations.pt'
    """
    require_capture(data)
    contrast = "positive" in data
    if "positive" in data:
        require_contrast(data)
    paths = locate(name, store)
    require_free(paths, force=force, extracted=contrast)
    _require_finite(data)
    with _readable_errors(paths.store, Remedy.SAVE_LESS):
        paths.store.mkdir(parents=True, exist_ok=True)
        with unfinished(paths.tensors) as tensors, unfinished(paths.record) as record:
            file = _fill(tensors, lambda out: torch.save(_plain(data), out))
            content = encode_record(make_record(data, paths.name, file, steps))
            _write(record, lambda out: out.write(content))
            with folder_lock(paths.store):
                if force:
                    _replace(paths, tensors, record)
                else:
                    _claim(paths, tensors, record, extracted=contrast)
        _sync_folder(paths.store)
        clear_leftovers(paths.tensors, paths.record)
    return paths


def _require_finite(data: CaptureData) -> None:
    """Refuse states that were changed after the capture: no statistic can be computed from them.

    Raises:
        StoreError: A state is infinite or not a number.
    """
    for prompt in prompts_of(data):
        for layer, states in prompt["activations"].items():
            if not bool(states.isfinite().all()):
                raise StoreError(
                    f"the capture has states that are not finite at layer {layer}",
                    expected="states as they were captured",
                    next_step="capture again, or leave the changed prompts out",
                )


def _replace(paths: CapturePaths, tensors: UnfinishedFile, record: UnfinishedFile) -> None:
    # Remove the old record first and add the new one last, so that no record ever describes other tensors.
    put_in_place(paths)
    require_not_held(paths)  # before anything is deleted
    delete_unfinished(paths.replacement)
    with telling_loss(paths):
        drop_directions(paths)  # they are of the capture that is replaced, or of an earlier one
        paths.record.unlink(missing_ok=True)
        tensors.replace()
        remove_shards(paths)  # last, because a kill may not leave neither capture
    record.replace()


def _claim(paths: CapturePaths, tensors: UnfinishedFile, record: UnfinishedFile, *, extracted: bool) -> None:
    """Save under a free name; the capture of another process that was faster stays.

    Raises:
        StoreError: The name has been taken since it was checked.
    """
    require_free(paths, force=False, extracted=extracted)
    try:
        tensors.claim()
    except TakenError:  # on a file system without locks
        require_free(paths, force=False, extracted=extracted)
        raise
    record.replace()


def write_atomically(path: Path, content: bytes | Sequence[bytes | memoryview], *, replace: bool = True) -> None:
    """Write a file atomically.

    Args:
        path: The file.
        content: Its bytes, or several parts of them.
        replace: Whether to replace an existing file.

    Raises:
        StoreError: The file cannot be written; a previous file is unchanged.
        TakenError: The file exists, and `replace` is off; of several processes, one creates it.
    """
    with _readable_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(path) as file:
            _write(file, lambda out: out.writelines([content] if isinstance(content, bytes) else content))
            if replace:
                file.replace()
            else:
                file.claim()
        with suppress(FileNotFoundError):  # another process has put a replacement in place
            _sync_folder(path.parent)


def amend_record(paths: CapturePaths, record: CaptureRecord, added: Mapping[str, object], meanwhile: str) -> None:
    """Add fields to a capture's record, if it still describes the same capture.

    Args:
        paths: The capture.
        record: Its record as it was when the work on it began.
        added: Fields of `CaptureRecord` with their values.
        meanwhile: What was done with the capture since, such as "compared with its neighbours".

    Raises:
        StoreError: The capture was replaced, renamed or deleted meanwhile, or the record cannot be written.
    """
    require_amendable(paths)
    with folder_lock(paths.store):
        if not paths.record.exists():
            raise StoreError(
                f"the capture {paths.name!r} was deleted or renamed while it was {meanwhile}",
                expected="the same capture until the work ends",
                next_step="repeat it with the capture in its place",
            )
        now = read_record(paths.record)
        if (now["data"], now["created"]) != (record["data"], record["created"]):
            raise StoreError(f"the capture {paths.name!r} was replaced while it was {meanwhile}")
        content = encode_record(cast("CaptureRecord", {**now, **added}))
        decode_whole(paths.record, content)  # never replaces a record by one that cannot be read
        write_atomically(paths.record, content)
    clear_leftovers(paths.record)


@contextmanager
def held_file(path: Path, content: bytes) -> Iterator[Path]:
    """Write a hidden file for other processes of this run; it is deleted on exit, and counts as unfinished until then.

    Args:
        path: A path whose name the hidden file's name begins with, after a dot.
        content: Its bytes.

    Raises:
        StoreError: The file cannot be written.
    """
    with ExitStack() as held:
        with _readable_errors(path.parent):
            file = held.enter_context(unfinished(path))
            _write(file, lambda out: out.write(content))
        yield file.path


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


def _write(file: UnfinishedFile, write: Callable[[BinaryIO], object]) -> None:
    """Write a file and sync it to disk."""
    try:
        write(file.out)
    except RuntimeError as error:  # torch raises it in place of the OSError
        raise _system_error(error) from error
    file.out.flush()
    os.fsync(file.out.fileno())


def _fill(file: UnfinishedFile, write: Callable[[BinaryIO], object]) -> DataFile:
    """Write a file, sync it to disk and return its checksum."""
    _write(file, write)
    out = file.out
    size = out.seek(0, os.SEEK_END)
    out.seek(0)
    digest = hashlib.file_digest(out, "sha256").hexdigest()
    return DataFile(name=file.final.name, bytes=size, sha256=digest)


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
def _readable_errors(store: Path, if_full: Remedy | str = "free some disk space") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in _FULL
        raise StoreError(
            f"nothing was saved in {store}: {error.strerror or error}",
            expected="enough disk space" if full else "a writable folder",
            next_step=if_full if full else Remedy.CHOOSE_FOLDER,
        ) from error
