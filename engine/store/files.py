"""Open the files of a store: regular files only, whose links do not lead out of it."""

from __future__ import annotations

import contextlib
import os
from io import BufferedReader
from pathlib import Path

from engine.errors import StoreError
from engine.regular import IrregularFileError, open_regular_file, require_regular
from engine.remedies import Remedy


def open_regular(path: Path, store: Path) -> BufferedReader:
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
        return open_regular_file(path)
    except OSError as error:
        raise _said(path, error) from error


def regular_size(path: Path) -> int:
    """Size of a regular file in bytes, without opening it.

    Raises:
        StoreError: The path is not a regular file, or cannot be read.
        FileNotFoundError: There is no such file.
    """
    try:
        found = path.stat()
        require_regular(path, found)
    except OSError as error:
        raise _said(path, error) from error
    return found.st_size


def unwritable_part(folder: Path) -> Path | None:
    """What keeps files from being put in a folder, which is created if missing: its nearest existing part, or None.

    Example:
        >>> unwritable_part(Path("new/folder")) is None
        True
    """
    whole = folder.absolute()
    existing = next(part for part in (whole, *whole.parents) if os.path.exists(part))  # noqa: PTH110 - raises no error
    return None if existing.is_dir() and os.access(existing, os.W_OK) else existing


def require_inside(path: Path, store: Path) -> None:
    """Refuse a path whose links lead out of a store.

    Raises:
        StoreError: They do.
    """
    try:
        inside = path.resolve().is_relative_to(store.resolve())
        if inside and path.is_symlink():
            with contextlib.suppress(FileNotFoundError):
                path.stat()  # since Python 3.13, `resolve` accepts a link to itself
    except (OSError, RuntimeError) as error:
        raise StoreError(f"{path} is a link that cannot be followed", next_step="remove the link") from error
    if not inside:
        raise StoreError(f"{path} is a symbolic link out of the store", next_step="remove the link")


def _said(path: Path, error: OSError) -> Exception:
    if isinstance(error, IrregularFileError):
        return StoreError(f"{path} is {error.strerror}", next_step="remove it, or move it elsewhere")
    if not isinstance(error, FileNotFoundError):
        denied = isinstance(error, PermissionError)
        return StoreError(f"{path} cannot be read: {error.strerror}", next_step=Remedy.ASK_TO_READ if denied else "")
    if path.is_symlink():
        return StoreError(f"{path} is a link to a file that does not exist", next_step="remove the link")
    return error
