"""The cache of neighbours: where it is, and how it stays small."""

from __future__ import annotations

import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import platformdirs

from engine.errors import StoreError
from engine.store.delete import delete_capture
from engine.store.names import CapturePaths

log = logging.getLogger(__name__)

_MOST_BYTES = 4 * 2**30
_IN_USE_S = 24 * 3600.0  # states are read from disk when they are needed, also by other processes
_NEIGHBOUR = re.compile(r".+-[0-9a-f]{16}")


def neighbours_path() -> Path:
    """The folder where captures of neighbours are kept, next to converted weights."""
    return platformdirs.user_cache_path("layerscope") / "neighbours"


def mark_used(paths: CapturePaths) -> None:
    """Note that a neighbour is in use now, by the time of its record."""
    with suppress(OSError):  # a shared cache may be read-only
        os.utime(paths.record)


def limit_cache(folder: Path, most_bytes: int = _MOST_BYTES) -> None:
    """Delete the neighbours that were used longest ago, until all take at most 4 GiB; those used today stay.

    Args:
        folder: Where they are kept.
        most_bytes: The limit.
    """
    found = [_look_at(CapturePaths(folder, path.name)) for path in folder.iterdir() if _NEIGHBOUR.fullmatch(path.name)]
    total = 0
    for one in sorted(found, key=lambda kept: kept.used, reverse=True):
        total += one.size
        if total > most_bytes and time.time() - one.used > _IN_USE_S:
            with suppress(StoreError):  # another process deletes or captures it
                delete_capture(one.name, store=folder)
                log.info("deleted %s, which no run has used for a day: neighbours exceeded their limit", one.name)


class _Kept(NamedTuple):
    """A neighbour on disk: its name, the time of its last use, its bytes."""

    name: str
    used: float
    size: int


def _look_at(paths: CapturePaths) -> _Kept:
    size, used = 0, 0.0
    with suppress(OSError):  # another process deletes it
        for path in (*paths.shards.iterdir(), paths.record):
            found = path.stat()
            size, used = size + found.st_size, max(used, found.st_mtime)
    return _Kept(paths.name, used, size)
