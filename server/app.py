"""The MCP application: tools, resources and prompts put together, and word when a capture appears."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio import to_thread
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.subscriptions import InMemorySubscriptionBus, ResourcesListChanged
from mcp.types import CallToolResult, InputRequiredResult, Resource, Tool
from pydantic import ValidationError

from engine.version import VERSION
from server.changes import changes
from server.errors import cut, explain_arguments, guarded, require_known_arguments, require_whole_characters
from server.instructions import instructions_for
from server.legacy import LegacyListeners, promise_word
from server.prompts import add_prompts
from server.resources import add_resources, capture_names
from server.schemas import strict
from server.settings import ServerSettings
from server.stdio import serve_stdio
from server.tools import missing_tool, offered_tools
from server.tools.spec import ToolSpec
from server.workbench import Workbench, open_workbench


class LayerscopeServer(MCPServer[Workbench]):
    """An MCP server that refuses arguments it does not know, and lists captures as resources."""

    def __init__(self, settings: ServerSettings) -> None:
        self.at_work = threading.Lock()
        self._bus = InMemorySubscriptionBus()
        self._store_settings = settings
        self._listeners = LegacyListeners()
        self._tools: list[Tool] | None = None

        @asynccontextmanager
        async def lifespan(_app: MCPServer[Workbench]) -> AsyncIterator[Workbench]:
            async with open_workbench(settings, self.at_work) as bench, anyio.create_task_group() as tasks:
                tasks.start_soon(self._tell_of_captures)
                yield bench
                tasks.cancel_scope.cancel()

        super().__init__(
            "layerscope",
            title="layerscope",
            version=VERSION,
            instructions=instructions_for(offered_tools(settings)),
            lifespan=lifespan,
            log_level="WARNING",
            subscriptions=self._bus,
            middleware=[promise_word],
        )

    async def list_tools(self) -> list[Tool]:
        """The tools that it offers, with the schemas that calls are held to."""
        if self._tools is None:
            self._tools = [strict(tool) for tool in await super().list_tools()]
        return self._tools

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Workbench, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool; an argument that it does not have is an error that names the right one."""
        tools = {tool.name: tool for tool in await self.list_tools()}
        try:
            if name not in tools:
                raise ToolError(missing_tool(name, list(tools)))
            require_whole_characters(name, arguments)
            require_known_arguments(name, arguments, list(tools[name].input_schema.get("properties", {})))
            if context is not None:
                self._listeners.add(context.session)
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            wrong = error.__cause__
            raise ToolError(
                cut(explain_arguments(name, wrong) if isinstance(wrong, ValidationError) else str(error))
            ) from error

    async def run_stdio_async(self) -> None:
        """Serve over stdin and stdout; a line that is no message is answered too."""
        await serve_stdio(self._lowlevel_server)

    async def list_resources(self) -> list[Resource]:
        """Every capture of the store."""
        names = await to_thread.run_sync(capture_names, self._store_settings)
        return [Resource(uri=f"capture://{name}", name=name, mime_type="application/json") for name in names]

    async def _tell_of_captures(self) -> None:
        """Tell clients of either era when captures come or go, whoever made them."""
        async for _ in changes(self._store_settings.store):
            await self._bus.publish(ResourcesListChanged())
            await self._listeners.tell()


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
    add_resources(app, settings)
    add_prompts(app)
    return app


def _description(spec: ToolSpec) -> str:
    return " ".join((spec.function.__doc__ or "").split())
