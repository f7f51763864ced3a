"""Temporary files of saves: written next to their final name, locked while the save lives, then renamed."""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import BinaryIO

from engine import regular
from engine.errors import StoreError
from engine.inputs import user_path
from engine.remedies import Remedy
from engine.store.catalog import unfinished_saves
from engine.store.locks import folder_lock, open_locked, try_lock
from engine.store.names import UNFINISHED, CapturePaths
from engine.store.plan import remove_shards
from engine.store.replace import put_in_place

_HAS_LOCKS = os.name == "posix"
_DAY = 86_400.0  # where a living save holds no lock, only files older than this are taken to be abandoned


class TakenError(StoreError):
    """A file of that name exists, perhaps since a moment ago."""


@dataclass(frozen=True)
class UnfinishedFile:
    """A temporary file that is being written.

    Attributes:
        path: The temporary file.
        out: The open file, locked.
        final: The path that it will get.
    """

    path: Path
    out: BufferedRandom
    final: Path

    def replace(self) -> None:
        """Give the file its final name; a file of that name is replaced."""
        self._let_go()
        self.path.replace(self.final)

    def claim(self) -> None:
        """Give the file its final name, unless it is taken; of several processes, one succeeds.

        Raises:
            TakenError: The name is taken.
        """
        self._let_go()
        claim(self.path, self.final)

    def _let_go(self) -> None:
        if not _HAS_LOCKS:  # pragma: no cover
            self.out.close()  # Windows cannot rename an open file


def claim(source: Path, final: Path) -> None:
    """Move a file to a name, unless it is taken; of several processes, one succeeds.

    Raises:
        TakenError: The name is taken.
    """
    try:
        regular.claim(source, final)
    except FileExistsError:
        raise TakenError(f"{final} already exists", next_step=Remedy.RENAME_OR_REPLACE) from None


@contextmanager
def unfinished(final: Path) -> Iterator[UnfinishedFile]:
    """Create a hidden, locked temporary file next to the final path; deleted unless renamed."""
    path = final.with_name(f".{final.name}.{secrets.token_hex(4)}{UNFINISHED}")
    while True:
        out = path.open("x+b")
        try_lock(out.fileno())
        if not _HAS_LOCKS or path.exists():
            break
        out.close()  # pragma: no cover - another process took it for abandoned before it was locked
    try:
        yield UnfinishedFile(path, out, final)
    finally:
        if not _HAS_LOCKS:  # pragma: no cover
            out.close()
        path.unlink(missing_ok=True)
        out.close()


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that is not a capture's, such as a figure; one of the same name is replaced once it is complete.

    Args:
        path: The file; missing parent folders are created.
        write: Writes the content into an open file.

    Raises:
        OSError: The file cannot be written; a previous file is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(path) as file:
        write(file.out)
        file.out.flush()
        os.fsync(file.out.fileno())
        file.replace()


def clear_leftovers(*finals: Path) -> None:
    """Delete what killed saves of these files left; the files of living saves stay."""
    for final in finals:
        for path in final.parent.glob(f".{final.name}.????????{UNFINISHED}"):
            remove_abandoned(path)


def remove_abandoned(path: Path) -> bool:
    """Delete a temporary file unless a living save holds it; say whether it was deleted."""
    with suppress(OSError):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            return False
        if not _HAS_LOCKS and time.time() - status.st_mtime < _DAY:  # pragma: no cover
            return False
        held = open_locked(path)
        if held is None:
            return False
        with held:
            if _HAS_LOCKS:
                path.unlink()
        path.unlink(missing_ok=True)
        return True
    return False


def clean_store(store: str | Path) -> list[Path]:
    """Delete the temporary files of killed saves in a store, and unfinished replacements; return their paths.

    Files that a running save writes stay.

    Args:
        store: The store folder.
    """
    folder = user_path(store)
    return [
        path
        for path in unfinished_saves(folder)
        if (_remove_replacement(CapturePaths(folder, path.name)) if path.is_dir() else remove_abandoned(path))
    ]


def _remove_replacement(paths: CapturePaths) -> bool:
    """Delete an unfinished replacement unless a process captures it, and put a complete one in place."""
    with suppress(OSError, StoreError), folder_lock(paths.store):
        put_in_place(paths)
        gone = remove_shards(paths.replacement)
        with suppress(OSError):  # it holds other replacements
            paths.replacement.store.rmdir()
        return bool(gone)
    return False
