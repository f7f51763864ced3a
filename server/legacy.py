"""Word to clients of the older protocol that the list of captures has changed.

The SDK publishes it to modern clients. For older ones it offers no public way to reach a client outside of a call: a
session lives as long as its request, and the connection behind it is an attribute of the SDK's own. That attribute is
touched here and nowhere else. Nor does the SDK tell older clients that such word may come: that is added here.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from mcp.server.connection import Connection

if TYPE_CHECKING:
    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
    from mcp.server.session import ServerSession


class LegacyListeners:
    """The connections that calls have come over; each is forgotten when its client has gone."""

    def __init__(self) -> None:
        self._connections: WeakSet[Connection] = WeakSet()

    def add(self, session: ServerSession) -> None:
        """Remember who is behind a call."""
        connection = connection_of(session)
        if connection is not None:
            self._connections.add(connection)

    async def tell(self) -> None:
        """Tell them all; who has gone meanwhile is passed over."""
        for connection in list(self._connections):
            with suppress(Exception):
                await connection.send_resource_list_changed()


def connection_of(session: ServerSession) -> Connection | None:
    """The connection behind a session; None where the SDK keeps it elsewhere: then older clients do not hear."""
    found = getattr(session, "_connection", None)
    return found if isinstance(found, Connection) else None


async def promise_word(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Middleware: tell a client of the older protocol, as it connects, that the list of captures may change."""
    result = await call_next(ctx)
    if ctx.method != "initialize" or result is None:
        return result
    said = result if isinstance(result, dict) else result.model_dump(mode="json", by_alias=True, exclude_none=True)
    resources = said.get("capabilities", {}).get("resources")
    if resources is not None:
        resources["listChanged"] = True
    return said
