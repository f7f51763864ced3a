"""Word that the store has changed, whoever changed it. Looks at names and times of the records, never into them."""

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import anyio
from anyio import to_thread

_LOOK_EVERY_S = 1.0


async def changes(store: Path) -> AsyncIterator[None]:
    """Come back each time that captures have appeared, gone or been replaced; never end.

    Args:
        store: The folder; it need not be there yet.
    """
    seen = await to_thread.run_sync(_stamp, store)
    while True:
        await anyio.sleep(_LOOK_EVERY_S)
        now = await to_thread.run_sync(_stamp, store)
        if now != seen:
            seen = now
            yield


def _stamp(store: Path) -> frozenset[tuple[str, int]]:
    """What the store holds, cheaply."""
    stamps = []
    with suppress(OSError):  # not there yet, or not to be read now
        for path in store.glob("*.json"):
            with suppress(OSError):  # deleted meanwhile
                stamps.append((path.name, path.stat().st_mtime_ns))
    return frozenset(stamps)
