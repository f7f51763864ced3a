"""Advisory locks on files of the store; the system releases them when a process dies, however it dies."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from engine.errors import StoreError

if sys.platform == "win32":  # pragma: no cover
    import msvcrt
else:
    import fcntl

_PATIENCE = 30.0  # seconds; a folder is locked only while files are renamed
_PAUSE = 0.02


def try_lock(handle: int) -> bool:
    """Lock an open file, unless another process or thread holds the lock; closing the file releases it.

    Where the file system has no locks, as on some network drives, every lock succeeds.

    Args:
        handle: File descriptor. On Windows it must be of a file, not of a folder.
    """
    try:
        if sys.platform == "win32":  # pragma: no cover
            os.lseek(handle, 1 << 30, os.SEEK_SET)  # a byte that no reader needs: Windows enforces its locks
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def open_locked(path: Path) -> BinaryIO | None:
    """Open a regular file and lock it; None if another process or thread holds the lock.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The file cannot be opened.
    """
    while True:
        flags = os.O_RDWR | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(path, flags), "r+b", buffering=0)
        if not try_lock(file.fileno()):
            file.close()
            return None
        try:
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except OSError:
            file.close()
            raise
        file.close()  # replaced between opening and locking


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a store, created if missing, while files that belong together are named.

    On Windows, which has no locks on folders, this does nothing.

    Raises:
        StoreError: The folder cannot be opened, or another process holds the lock for half a minute.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY) if hasattr(os, "O_DIRECTORY") else None
    except OSError as error:
        raise StoreError(f"the folder {folder} cannot be opened: {error.strerror}") from error
    if handle is None:  # pragma: no cover
        yield
        return
    try:
        deadline = time.monotonic() + _PATIENCE
        while not try_lock(handle):
            if time.monotonic() > deadline:
                raise StoreError(
                    f"another process has kept the store {folder} locked for {_PATIENCE:.0f} seconds",
                    next_step="wait until it ends, then try again",
                )
            time.sleep(_PAUSE)
        yield
    finally:
        os.close(handle)
