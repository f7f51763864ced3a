"""The MCP application: tools, resources and prompts put together, and word when a capture appears."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Any
from weakref import WeakSet

import anyio
from anyio import to_thread
from mcp.server import MCPServer
from mcp.server.connection import Connection
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.subscriptions import InMemorySubscriptionBus, ResourcesListChanged
from mcp.types import CallToolResult, InputRequiredResult, Resource
from pydantic import ValidationError

from engine.errors import RequestError, nearest
from server.errors import explain_arguments, guarded, require_known_arguments
from server.prompts import add_prompts
from server.resources import add_resources, capture_names
from server.settings import ServerSettings
from server.tools import TOOLS
from server.tools.spec import ToolSpec
from server.workbench import Workbench, open_workbench

log = logging.getLogger("server")

_LOOK_EVERY_S = 1.0
_INSTRUCTIONS = """layerscope finds where in a language model a concept lives.
The usual way: list_concepts -> capture_contrast(concept=...) -> rank_layers(name=...) -> plot_capture(name=...).
Everything is kept in a store under its name; names are what tools take and give.
A layer number counts decoder blocks from 0 and means the residual stream after that block.
Report intervals and ties, never the first layer alone, and pass on warnings: they name what could explain a result.
Long work answers with a job: wait_for_job(job=...)."""


class LayerscopeServer(MCPServer[Workbench]):
    """An MCP server that refuses arguments it does not know, and lists captures as resources."""

    def __init__(self, settings: ServerSettings) -> None:
        self.at_work = threading.Lock()
        self._bus = InMemorySubscriptionBus()
        self._store_settings = settings
        self._connections: WeakSet[Connection] = WeakSet()

        @asynccontextmanager
        async def lifespan(_app: MCPServer[Workbench]) -> AsyncIterator[Workbench]:
            async with open_workbench(settings, self.at_work) as bench, anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch_store)
                yield bench
                tasks.cancel_scope.cancel()

        super().__init__(
            "layerscope",
            title="layerscope",
            version=version("layerscope"),
            instructions=_INSTRUCTIONS,
            lifespan=lifespan,
            log_level="WARNING",
            subscriptions=self._bus,
        )

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Workbench, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool; an argument that it does not have is an error that names the right one."""
        tool = self._tool_manager.get_tool(name)
        if tool is None:
            known = [offered.name for offered in self._tool_manager.list_tools()]
            raise ToolError(f"there is no tool {name!r}; {nearest(name, known)}")
        require_known_arguments(name, arguments, list(tool.parameters.get("properties", {})))
        if context is not None:
            # A session is made for each request; the connection behind it is what stays. The SDK keeps it to itself.
            with suppress(Exception):
                self._connections.add(context.session._connection)
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            if isinstance(error.__cause__, ValidationError):
                raise ToolError(explain_arguments(name, error.__cause__)) from error
            raise

    async def list_resources(self) -> list[Resource]:
        """Every capture of the store."""
        names = await to_thread.run_sync(capture_names, self._store_settings)
        return [Resource(uri=f"capture://{name}", name=name, mime_type="application/json") for name in names]

    async def _watch_store(self) -> None:
        """Tell clients when captures come or go, whoever made them."""
        seen = await to_thread.run_sync(_stamp, self._store_settings)
        while True:
            await anyio.sleep(_LOOK_EVERY_S)
            now = await to_thread.run_sync(_stamp, self._store_settings)
            if now != seen:
                seen = now
                await self._bus.publish(ResourcesListChanged())
                for connection in list(self._connections):
                    with suppress(Exception):  # a client that has gone
                        await connection.send_resource_list_changed()


def build_server(settings: ServerSettings) -> LayerscopeServer:
    """Put a server together.

    Args:
        settings: What it may do.

    Raises:
        RequestError: It is to offer a tool that does not exist.
    """
    app = LayerscopeServer(settings)
    for spec in offered_tools(settings):
        app.add_tool(
            guarded(spec.function),
            name=spec.name,
            title=spec.title,
            description=_description(spec),
            annotations=spec.annotations,
        )
        registered = app._tool_manager.get_tool(spec.name)
        if registered is not None:
            registered.parameters = {**_without_titles(registered.parameters), "additionalProperties": False}
            if registered.fn_metadata.output_schema is not None:
                registered.fn_metadata.output_schema = _without_titles(registered.fn_metadata.output_schema)
    add_resources(app, settings)
    add_prompts(app)
    return app


def offered_tools(settings: ServerSettings) -> list[ToolSpec]:
    """The tools that a server with these settings has, in their fixed order.

    Raises:
        RequestError: A tool was asked for that does not exist.
    """
    known = [spec.name for spec in TOOLS]
    for name in settings.tools:
        if name not in known:
            raise RequestError(f"there is no tool {name!r}; {nearest(name, known)}", expected=", ".join(known))
    wanted = settings.tools or tuple(known)
    return [spec for spec in TOOLS if spec.name in wanted and not (settings.read_only and spec.writes)]


def _description(spec: ToolSpec) -> str:
    return " ".join((spec.function.__doc__ or "").split())


def _without_titles(schema: Any) -> Any:  # noqa: ANN401 - any JSON
    """A schema without the titles that only repeat the names: agents read all of it, every time."""
    if isinstance(schema, dict):
        return {
            key: _without_titles(value)
            for key, value in schema.items()
            if not (key == "title" and isinstance(value, str))
        }
    return [_without_titles(value) for value in schema] if isinstance(schema, list) else schema


def _stamp(settings: ServerSettings) -> frozenset[tuple[str, int]]:
    """What the store holds, cheaply: names and times of the records."""
    if not settings.store.exists():
        return frozenset()
    stamps = []
    for path in settings.store.glob("*.json"):
        with suppress(OSError):  # deleted meanwhile
            stamps.append((path.name, path.stat().st_mtime_ns))
    return frozenset(stamps)
