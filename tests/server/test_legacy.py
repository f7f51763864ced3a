"""The one attribute of the SDK's own that is used: where a session keeps its connection."""

from typing import Any

import pytest
from mcp import Client
from mcp.server import MCPServer
from mcp.server.connection import Connection
from mcp.server.mcpserver import Context

from server.legacy import LegacyListeners, connection_of
from tests.server.conftest import ERAS

pytestmark = pytest.mark.anyio

CHANGED = (
    "the MCP SDK has changed: a ServerSession no longer keeps its Connection in `_connection`. Until server/legacy.py"
    " finds it elsewhere, clients of the older protocol do not hear that captures appear."
)


@pytest.mark.parametrize("era", ERAS)
async def test_the_sdk_keeps_the_connection_where_it_is_looked_for(era: str) -> None:
    found: list[Connection | None] = []
    app = MCPServer("probe")

    @app.tool()
    def probe(ctx: Context[Any, Any]) -> str:
        found.append(connection_of(ctx.session))
        return "done"

    async with Client(app, mode=era) as client:
        await client.call_tool("probe", {})
        await client.call_tool("probe", {})
    assert all(isinstance(connection, Connection) for connection in found), CHANGED
    if era == "legacy":
        assert found[0] is found[1], CHANGED  # one connection, however many calls come over it


async def test_a_session_without_a_connection_breaks_nothing() -> None:
    class Bare:
        """What a session might become."""

    listeners = LegacyListeners()
    listeners.add(Bare())  # type: ignore[arg-type]
    await listeners.tell()
