"""Notifications: tell clients that the list of captures in the store has changed.

The SDK notifies modern clients. For older ones it has no public way to reach a client outside a call: a session lives
as long as its request, and the connection behind it is a private attribute of the SDK. Only `connection_of` touches
that attribute. Nor does the SDK announce these notifications to older clients; `announce_changes` does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import anyio
from anyio import to_thread
from mcp.server.connection import Connection

if TYPE_CHECKING:
    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
    from mcp.server.session import ServerSession

_LOOK_EVERY_S = 1.0


async def changes(store: Path) -> AsyncIterator[None]:
    """Yield whenever captures were added, deleted or replaced; never end.

    Args:
        store: The folder of captures; it need not exist yet.
    """
    seen = await to_thread.run_sync(_stamp, store)
    while True:
        await anyio.sleep(_LOOK_EVERY_S)
        now = await to_thread.run_sync(_stamp, store)
        if now != seen:
            seen = now
            yield


class LegacyListeners:
    """Connections of older clients that have made a call, until they disconnect."""

    def __init__(self) -> None:
        self._connections: WeakSet[Connection] = WeakSet()

    def add(self, session: ServerSession) -> None:
        """Remember the connection behind a call."""
        connection = connection_of(session)
        if connection is not None:
            self._connections.add(connection)

    async def notify(self) -> None:
        """Notify all that are still connected."""
        for connection in list(self._connections):
            with suppress(Exception):
                await connection.send_resource_list_changed()


def connection_of(session: ServerSession) -> Connection | None:
    """Return the connection behind a session; None if the SDK keeps it elsewhere.

    Without it, older clients are not notified.
    """
    found = getattr(session, "_connection", None)
    return found if isinstance(found, Connection) else None


async def announce_changes(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Middleware: announce list changes to an older client when it connects."""
    result = await call_next(ctx)
    if ctx.method != "initialize" or result is None:
        return result
    said = result if isinstance(result, dict) else result.model_dump(mode="json", by_alias=True, exclude_none=True)
    resources = said.get("capabilities", {}).get("resources")
    if resources is not None:
        resources["listChanged"] = True
    return said


def _stamp(store: Path) -> frozenset[tuple[str, int]]:
    """Return the names and times of the records, without reading them."""
    stamps = []
    with suppress(OSError):  # the store does not exist yet, or is not readable now
        for path in store.glob("*.json"):
            with suppress(OSError):  # deleted since it was listed
                stamps.append((path.name, path.stat().st_mtime_ns))
    return frozenset(stamps)
