"""`layerscope serve`: the command that starts the server. Imports the SDK when it runs, not before."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from engine.cli.console import Command, Narrator
from engine.cli.load_options import DeviceMap, Dtype, MaxMemory, read_load_options
from engine.inputs import user_path
from engine.models.placement import AUTO
from engine.store.names import DEFAULT_STORE

if TYPE_CHECKING:
    from server.app import LayerscopeServer

_LONGEST_END_S = 5.0

HELP = """Serve captures and their analysis to LLM agents, over the Model Context Protocol.

[bold]Examples[/bold]

  layerscope serve
  layerscope serve --store runs --read-only
  layerscope serve --http 127.0.0.1:8765
  LAYERSCOPE_TOKEN=... layerscope serve --http 0.0.0.0:8765 --allow-host box.example:8765
"""


def serve(
    store: Annotated[Path, typer.Option("--store", "-s", help="The folder of captures; nothing else is touched.")] = (
        DEFAULT_STORE
    ),
    http: Annotated[str | None, typer.Option(help="Listen at HOST:PORT; over stdin and stdout unless given.")] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Only tools that change nothing.")] = False,
    tools: Annotated[list[str] | None, typer.Option(help="Only this tool. Repeat for several.")] = None,
    allow_model: Annotated[
        list[str] | None,
        typer.Option(help="Only this model: alias, hub id or path. Repeat for several. Every alias unless given."),
    ] = None,
    memory_gb: Annotated[
        float | None,
        typer.Option(min=0.1, max=1e6, help="Weights that stay loaded; half of this machine's unless given."),
    ] = None,
    dtype: Dtype = AUTO,
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that HTTP clients must present; or LAYERSCOPE_TOKEN.")
    ] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="A host:port that HTTP clients may call it by.")] = None,
    allow_origin: Annotated[list[str] | None, typer.Option(help="An origin whose web pages may call it.")] = None,
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"],
        typer.Option(case_sensitive=False, help="How much to log; logs go to stderr."),
    ] = "INFO",
) -> None:
    """Serve captures and their analysis to LLM agents."""
    from server.app import build_server
    from server.log import log_to_stderr
    from server.settings import ServerSettings, default_memory

    settings = ServerSettings(
        store=user_path(store).absolute(),
        read_only=read_only,
        tools=tuple(tools or ()),
        allowed_models=tuple(allow_model or ()),
        memory_bytes=int(memory_gb * 1e9) if memory_gb else default_memory(),
        load_options=read_load_options(dtype, device_map, max_memory),
    )
    settings.require_usable()
    log_to_stderr(log_level)
    app = build_server(settings)
    if http is None:
        _serve_stdio(app)
        return
    from server.http import build_http, listening, parse_address, read_token, serve_http

    address = parse_address(http)
    asgi = build_http(app, address, read_token(token_file), allow_host or [], allow_origin or [])
    with listening(address) as listener:
        Narrator(quiet=False).say(f"listening at http://{http}/mcp")
        serve_http(asgi, listener)


def _serve_stdio(app: LayerscopeServer) -> None:
    """Serve until stdin ends or the process is told to stop; then end cleanly."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    log = logging.getLogger("server")
    try:
        app.run("stdio")
    except* KeyboardInterrupt:
        log.info("stopped")
    except* (BrokenPipeError, ConnectionResetError):
        log.info("the client has gone")
    # The SDK's reader may still wait for a line of stdin in a thread, so the process is ended from here: not before a
    # job that has been told to stop has done so, and has cleaned up what it was saving.
    app.at_work.acquire(timeout=_LONGEST_END_S)
    logging.shutdown()
    os._exit(0)


COMMAND = Command("serve", serve, HELP)
