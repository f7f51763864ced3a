"""Open regular files only, since a named pipe would wait for a writer; and give files names that are free."""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class IrregularFileError(OSError):
    """A path is not a regular file; `strerror` says what it is."""


def open_regular_file(path: Path) -> BufferedReader:
    """Open a regular file for reading; never waits.

    Raises:
        IrregularFileError: The path is something else.
        OSError: The file cannot be opened.

    Example:
        >>> size = Path("notes.txt").write_bytes(b"text")
        >>> with open_regular_file(Path("notes.txt")) as file:
        ...     file.read()
        b'text'
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        require_regular(path, os.fstat(handle))
    except IrregularFileError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def require_regular(path: Path, found: os.stat_result) -> None:
    """Refuse anything but a regular file.

    Args:
        path: The path, for the error.
        found: Its status.

    Raises:
        IrregularFileError: It is something else.
    """
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "of an unknown kind")
        raise IrregularFileError(0, f"{kind}, not a regular file", str(path))


def claim(source: Path, final: Path) -> None:
    """Move a file to a name, unless it is taken; of several processes, one succeeds.

    Raises:
        FileExistsError: The name is taken.
        OSError: The file cannot be moved.

    Example:
        >>> size = Path("draft.txt").write_bytes(b"text")
        >>> claim(Path("draft.txt"), Path("final.txt"))
        >>> Path("draft.txt").exists(), Path("final.txt").exists()
        (False, True)
    """
    try:
        os.link(source, final)
    except FileExistsError:
        raise
    except OSError:  # the file system has no links
        os.close(os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        try:
            source.replace(final)
        except OSError:
            final.unlink()
            raise
    else:
        source.unlink()
