"""The cache of neighbours: where it is, how processes take turns, and how it stays small."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import platformdirs

from engine.errors import StoreError
from engine.runtime import Steps
from engine.store.delete import delete_capture
from engine.store.locks import try_lock
from engine.store.names import CapturePaths

log = logging.getLogger(__name__)

_PAUSE = 0.2  # seconds
_IN_USE_S = 24 * 3600.0  # states are read from disk when they are needed, also by other processes
_NEIGHBOUR = re.compile(r".+-[0-9a-f]{16}")


def neighbours_path() -> Path:
    """The folder where captures of neighbours are kept, next to converted weights."""
    return platformdirs.user_cache_path("layerscope") / "neighbours"


def mark_used(paths: CapturePaths) -> None:
    """Note that a neighbour is in use now, by the time of its record."""
    with suppress(OSError):  # a shared cache may be read-only
        os.utime(paths.record)


@contextmanager
def alone(paths: CapturePaths, steps: Steps) -> Iterator[None]:
    """Wait until no other process or thread captures this neighbour, and keep others waiting meanwhile."""
    try:
        paths.store.mkdir(parents=True, exist_ok=True)
        lock = _open_lock(paths)
    except OSError as error:
        raise StoreError(
            f"neighbours cannot be kept in {paths.store}: {error.strerror}",
            expected="a writable cache folder",
            next_step="set XDG_CACHE_HOME to another folder",
        ) from error
    with lock:
        while not try_lock(lock.fileno()):
            steps(f"waiting for another process to capture {paths.name.rpartition('-')[0]}", 0, 0)
            time.sleep(_PAUSE)
        yield


def limit_cache(folder: Path, most_bytes: int) -> None:
    """Delete the neighbours that were used longest ago, until all take at most `most_bytes`.

    Those used in the last 24 hours stay, and those that another process captures.
    """
    found = [_look_at(CapturePaths(folder, path.name)) for path in folder.iterdir() if _NEIGHBOUR.fullmatch(path.name)]
    total = 0
    for one in sorted(found, key=lambda kept: kept.used, reverse=True):
        total += one.size
        if total > most_bytes and one.unused:
            _delete(CapturePaths(folder, one.name))


class _Kept(NamedTuple):
    """A neighbour on disk: its name, the time of its last use, its bytes."""

    name: str
    used: float
    size: int

    @property
    def unused(self) -> bool:
        """Whether no run has used it for a day."""
        return time.time() - self.used > _IN_USE_S


def _look_at(paths: CapturePaths) -> _Kept:
    size, used = 0, 0.0
    with suppress(OSError):  # another process deletes it
        for path in (*paths.shards.iterdir(), paths.record):
            found = path.stat()
            size, used = size + found.st_size, max(used, found.st_mtime)
    return _Kept(paths.name, used, size)


def _delete(paths: CapturePaths) -> None:
    """Delete a neighbour, unless another process holds its lock or has used it meanwhile."""
    with suppress(OSError, StoreError), _open_lock(paths) as lock:
        if try_lock(lock.fileno()) and _look_at(paths).unused:
            delete_capture(paths.name, store=paths.store)
            log.info("deleted %s, which no run has used for a day: neighbours exceeded their limit", paths.name)


def _open_lock(paths: CapturePaths) -> BinaryIO:
    return (paths.store / f".{paths.name}.lock").open("a+b")
