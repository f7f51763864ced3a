"""Open the files of a store: regular files only, whose links do not lead out of it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from engine.errors import StoreError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path, store: Path) -> BinaryIO:
    """Open a file of a store for reading; never waits, as opening a named pipe would.

    Args:
        path: The file.
        store: The store folder, which links must not leave.

    Raises:
        StoreError: The path is not a regular file, is a link out of the store, or cannot be read.
        FileNotFoundError: There is no such file.

    Example:
        >>> size = Path("notes.txt").write_bytes(b"text")
        >>> with open_regular(Path("notes.txt"), Path(".")) as file:
        ...     file.read()
        b'text'
    """
    require_inside(path, store)
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        if path.is_symlink():
            raise StoreError(f"{path} is a link to a file that does not exist", next_step="remove the link") from None
        raise
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        kind = _KINDS.get(stat.S_IFMT(mode), "of an unknown kind")
        raise StoreError(f"{path} is {kind}, not a regular file", next_step="remove it, or move it elsewhere")
    return os.fdopen(handle, "rb")


def require_inside(path: Path, store: Path) -> None:
    """Refuse a path whose links lead out of a store.

    Raises:
        StoreError: They do.
    """
    if not path.resolve().is_relative_to(store.resolve()):
        raise StoreError(f"{path} is a symbolic link out of the store", next_step="remove the link")
