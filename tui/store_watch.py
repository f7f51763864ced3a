"""Says when to look at a store again. Knows files and time; no Textual."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from watchfiles import awatch

_LOOK_EVERY_S = 1.5


async def store_changes(store: Path) -> AsyncIterator[None]:
    """Come at once, and again whenever the store may hold something else.

    The folder's time tells of a change where the system does not, as over a network or without permission.

    Args:
        store: The folder; it need not be there yet.
    """
    seen = _changed(store)
    yield
    async for told in _hints(store):
        now = _changed(store)
        if told or now != seen:
            seen = now
            yield


async def _hints(store: Path) -> AsyncIterator[bool]:
    """At once when the system says that files have changed, and every now and then whatever it says."""
    every = int(_LOOK_EVERY_S * 1000)
    while True:
        try:
            async for changes in awatch(
                store, debounce=300, step=50, rust_timeout=every, yield_on_timeout=True, recursive=False
            ):
                yield bool(changes)
        except OSError:  # no such folder yet, no permission, or no more watches to be had
            yield False
            await asyncio.sleep(_LOOK_EVERY_S)


def _changed(store: Path) -> int:
    """When something was last added to the folder or taken away, or permission given.

    A capture is saved by renaming, and so changes its folder.
    """
    try:
        return store.stat().st_ctime_ns
    except OSError:
        return 0
