"""Notifications of added, deleted and replaced captures, in both protocol eras."""

from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.server import MCPServer
from mcp.server.connection import Connection
from mcp.server.mcpserver import Context

import engine
from engine.store.delete import delete_capture
from server.notifications import LegacyListeners, changes, connection_of
from tests.server.conftest import ERAS

pytestmark = pytest.mark.anyio


async def test_added_deleted_and_replaced_captures_are_announced(store: Path, tmp_path: Path) -> None:
    data = engine.load_activations("prompt", store=store)
    new = tmp_path / "not there yet"
    told = changes(new)
    for change in (
        lambda: engine.save_activations(data, "one", store=new),
        lambda: engine.save_activations(data, "one", store=new, force=True),
        lambda: delete_capture("one", store=new),
    ):
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                with anyio.fail_after(10):
                    await anext(told)

            tasks.start_soon(wait)
            await anyio.sleep(0.2)
            change()


async def test_reading_is_no_change(store: Path) -> None:
    heard = False

    async def listen() -> None:
        nonlocal heard
        async for _ in changes(store):
            heard = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        await anyio.sleep(0.2)
        engine.load_activations("prompt", store=store)
        (store / "note.txt").write_text("mine")
        await anyio.sleep(2.2)
        tasks.cancel_scope.cancel()
    assert not heard


CHANGED = (
    "the MCP SDK has changed: a ServerSession no longer keeps its Connection in `_connection`. Until"
    " server/notifications.py finds it elsewhere, clients of the older protocol do not hear that captures appear."
)


@pytest.mark.parametrize("era", ERAS)
async def test_the_sdk_still_has_the_private_connection(era: str) -> None:
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
        assert found[0] is found[1], CHANGED  # one connection for any number of calls


async def test_a_session_without_a_connection_breaks_nothing() -> None:
    class Bare:
        """A session as a future SDK might define it."""

    listeners = LegacyListeners()
    listeners.add(Bare())  # type: ignore[arg-type]
    await listeners.notify()
