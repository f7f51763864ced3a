"""The MCP application: tools, resources, prompts, instructions and notifications."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio import to_thread
from mcp.server import MCPServer, ServerRequestContext
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ResourceError, ToolError, UnexpectedResourceError
from mcp.server.subscriptions import InMemorySubscriptionBus, ResourcesListChanged
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    CallToolResult,
    GetPromptResult,
    InputRequiredResult,
    ListResourcesResult,
    PaginatedRequestParams,
    Resource,
    Tool,
)
from pydantic import AnyUrl, ValidationError

from engine.errors import nearest
from engine.version import VERSION
from server.arguments import explain_arguments, require_known_arguments, require_whole_characters
from server.errors import cut, explain_shortage, guarded
from server.notifications import LegacyListeners, announce_changes, changes
from server.resources import add_prompts, add_resources, list_page, wrong_prompt_arguments
from server.settings import ServerSettings
from server.stdio import serve_stdio
from server.tools import TOOLS, missing_tool, offered_tools
from server.tools.spec import ToolSpec, compact
from server.workbench import Workbench, open_workbench

_WAY = ("list_concepts", "capture_contrast(concept=...)", "rank_layers(name=...)", "plot_capture(name=...)")
_INSTRUCTIONS = """layerscope finds where in a language model a concept lives.
The usual order of calls: {way}.
A contrast is a set of prompt pairs that differ only in a concept. A capture holds the hidden states of one run over a
contrast or over prompts; the store keeps it under a name, and tools take and return such names.
Layer i is the residual stream after decoder block i, counted from 0.
A contrast also gives directions: read a text along one token by token, let the model answer with it added, next to a
random control, rank layers by what that does, or save control vectors for other tools. A layer may read well and do
nothing.
Report intervals and ties, never the first layer alone, and pass on warnings: they name what could explain a result.
Long work returns a job handle: wait_for_job(job=...). To resume a large capture that was stopped, repeat the call.
In answers, next_step names the next call, warnings must be read before trusting a result, and absent fields have no
value. Answers stay within 8 KB: cut says what was dropped and how to get it."""


class LayerscopeServer(MCPServer[Workbench]):
    """An MCP server that refuses unknown arguments and lists captures as resources."""

    def __init__(self, settings: ServerSettings) -> None:
        self.at_work = threading.Lock()
        self._bus = InMemorySubscriptionBus()
        self._store_settings = settings
        self._listeners = LegacyListeners()
        self._tools: list[Tool] | None = None

        @asynccontextmanager
        async def lifespan(_app: MCPServer[Workbench]) -> AsyncIterator[Workbench]:
            async with open_workbench(settings, self.at_work) as bench, anyio.create_task_group() as tasks:
                tasks.start_soon(self._notify_of_captures)
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
            middleware=[announce_changes],
        )

    async def list_tools(self) -> list[Tool]:
        """List the offered tools with their compact schemas."""
        if self._tools is None:
            self._tools = [compact(tool) for tool in await super().list_tools()]
        return self._tools

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Workbench, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool; an unknown argument is an error that names the right one."""
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
        """Serve over stdin and stdout, and answer invalid messages too."""
        await serve_stdio(self._lowlevel_server)

    async def list_resources(self) -> list[Resource]:
        """List the first page of captures."""
        return (await to_thread.run_sync(list_page, self._store_settings, None)).resources

    async def _handle_list_resources(
        self, _ctx: ServerRequestContext[Workbench], params: PaginatedRequestParams | None
    ) -> ListResourcesResult:
        """List one page of captures; the SDK's own handler has no pages."""
        return await to_thread.run_sync(list_page, self._store_settings, params.cursor if params else None)

    async def get_prompt(
        self, name: str, arguments: dict[str, Any] | None = None, context: Context[Workbench, Any] | None = None
    ) -> GetPromptResult | InputRequiredResult:
        """Fill in a prompt; a wrong name and missing or unknown arguments are invalid params."""
        prompts = {prompt.name: prompt.arguments or [] for prompt in await self.list_prompts()}
        if name not in prompts:
            raise MCPError(INVALID_PARAMS, cut(f"there is no prompt {name!r}; {nearest(name, prompts)}"))
        if wrong := wrong_prompt_arguments(name, arguments or {}, prompts[name]):
            raise MCPError(INVALID_PARAMS, cut(wrong))
        return await super().get_prompt(name, arguments, context)

    async def read_resource(
        self, uri: AnyUrl | str, context: Context[Workbench, Any] | None = None
    ) -> Iterable[ReadResourceContents] | InputRequiredResult:
        """Read a resource; a shortage of memory or file descriptors is named."""
        try:
            return await super().read_resource(uri, context)
        except UnexpectedResourceError as error:
            if said := explain_shortage(error):
                raise ResourceError(said) from error
            raise

    async def _notify_of_captures(self) -> None:
        """Notify clients of both protocol eras when captures appear or go."""
        async for _ in changes(self._store_settings.store):
            await self._bus.publish(ResourcesListChanged())
            await self._listeners.notify()


def build_server(settings: ServerSettings) -> LayerscopeServer:
    """Build a server.

    Args:
        settings: What the server may do.

    Raises:
        RequestError: The settings name a tool that does not exist.
    """
    app = LayerscopeServer(settings)
    for spec in offered_tools(settings):
        app.add_tool(
            guarded(spec.function),
            name=spec.name,
            title=spec.title,
            description=spec.description,
            annotations=spec.annotations,
        )
    add_resources(app, settings)
    add_prompts(app)
    return app


def instructions_for(offered: Sequence[ToolSpec]) -> str:
    """Write the server's instructions for agents.

    They name the missing tools, because answers may mention them.

    Args:
        offered: The tools of the server.
    """
    names = [spec.name for spec in offered]
    way = [step for step in ("list_captures", *_WAY) if step.split("(")[0] in names]
    if len(names) == len(TOOLS):
        way = list(_WAY)
    missing = ", ".join(spec.name for spec in TOOLS if spec.name not in names)
    said = f"\nThis server does not offer {missing}: skip a next_step that names one of them." if missing else ""
    return _INSTRUCTIONS.format(way=" -> ".join(way) or "any of the tools") + said
