"""Replace a capture by another one; until the new one is complete, the old one can be read.

Shards that will replace a capture are saved in a hidden folder of the store (`CapturePaths.replacement`). When the last
one is there, their record is written next to them. From then on the new capture counts: any process that opens the
name puts it in place, so a kill between two renames loses nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from engine.errors import LayerscopeError, StoreError
from engine.store.locks import folder_lock
from engine.store.names import CapturePaths, is_present, shard_files
from engine.store.ownership import drop_directions
from engine.store.plan import remove_shards, require_not_held

log = logging.getLogger(__name__)

Version = tuple[int, int]
"""Modification time and number of a file, see `version_of`."""

_Read = TypeVar("_Read")


def place_of_shards(paths: CapturePaths) -> CapturePaths:
    """Where to save the shards of a capture: where the first ones are, else away from a capture that they replace."""
    complete = is_present(paths.record) or is_present(paths.tensors)
    return paths.started or (paths.replacement if complete else paths)


def put_in_place(paths: CapturePaths) -> None:
    """Replace a capture by its complete replacement, if there is one; the caller holds the lock of the store.

    Files in the old folder that are not shards are kept in the new one.

    Raises:
        StoreError: A file cannot be moved or deleted.
    """
    if not is_present(paths.replacement.record):
        return
    try:
        _put_in_place(paths, paths.replacement)
    except OSError as error:
        raise StoreError(
            f"{paths.name!r} cannot be replaced by the new capture, which is complete: {error}",
            expected=f"files in {paths.store} that can be renamed and deleted",
            next_step="correct that; the new capture takes the place when you open it",
        ) from error


def _put_in_place(paths: CapturePaths, new: CapturePaths) -> None:
    if is_present(new.plan):  # else the shards have been moved, and only the record is left
        if paths.shards.is_symlink():
            paths.shards.unlink()
        require_not_held(paths)  # refuse before anything is deleted
        with telling_loss(paths):
            remove_shards(paths)
            paths.tensors.unlink(missing_ok=True)
            drop_directions(paths)  # they are of the capture that is replaced
        if paths.shards.exists():
            for path in [*paths.shards.iterdir()]:
                path.rename(new.shards / path.name)
            paths.shards.rmdir()
        new.shards.rename(paths.shards)
    new.record.replace(paths.record)
    with suppress(OSError):  # it holds other replacements
        new.store.rmdir()


def finish_replacement(paths: CapturePaths) -> None:
    """Put a complete replacement in place, or wait while another process does.

    A user who may not change the store reads the capture that is there.
    """
    new = paths.replacement
    if not is_present(new.record) or new.store.is_symlink():
        return
    with suppress(StoreError), folder_lock(paths.store):  # first, because another process may move them now
        moved = [new.shards] if is_present(new.shards) else []
        if all(os.access(folder, os.W_OK) for folder in (paths.store, new.store, *moved)):
            put_in_place(paths)


def read_whole(paths: CapturePaths, read: Callable[[], _Read]) -> _Read:
    """Read a capture, and read it again if another process replaced it meanwhile.

    Args:
        paths: The capture.
        read: Reads it without changing it.

    Raises:
        StoreError: It cannot be read.
    """
    while True:
        version = _version(paths)
        try:
            found = read()
        except LayerscopeError:
            if _version(paths) == version:
                raise
            continue
        if _version(paths) == version:
            return found


def _version(paths: CapturePaths) -> Version | None:
    """Version of the record, when no other process replaces it."""
    finish_replacement(paths)
    found = version_of(paths.record)
    if found is None and paths.store.is_dir():
        with folder_lock(paths.store):  # a save first removes the record, and adds the new one last
            found = version_of(paths.record)
    return found


def version_of(path: Path) -> Version | None:
    """What tells a file from the one that replaces it; None if there is no file."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def delete_unfinished(paths: CapturePaths) -> None:
    """Delete the shards of an unfinished capture, and say so; the caller holds the lock of the store.

    Args:
        paths: The capture, or the replacement of one.

    Raises:
        StoreError: Another process is capturing it, or a file cannot be deleted.
    """
    if not paths.plan.exists():
        return
    try:
        require_not_held(paths)  # refuse before anything is deleted
        with telling_loss(paths):
            remove_shards(paths)
            drop_directions(paths)  # of an earlier capture of that name
        if paths.is_replacement:
            with suppress(OSError):  # it holds other replacements
                paths.store.rmdir()
    except OSError as error:
        raise StoreError(f"{error.filename} cannot be deleted: {error.strerror}") from error


@contextmanager
def telling_loss(paths: CapturePaths) -> Iterator[None]:
    """Log what has been deleted with a capture that is replaced: directions, and the shards of an unfinished one."""
    saved, directions = len(shard_files(paths)) if paths.unfinished else 0, is_present(paths.directions)
    try:
        yield
    finally:  # an error may leave some of them
        gone = saved - len(shard_files(paths)) if saved else 0
        lost = [f"{gone} saved shard{'' if gone == 1 else 's'}"] if gone else []
        if directions and not is_present(paths.directions):
            lost.append("saved directions")
        if lost:
            log.warning("replacing %s: deleted its %s", paths.name, " and its ".join(lost))
