"""`layerscope serve`: the command that starts the server, and its log.

The MCP SDK is imported only when the command runs.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from engine.cli.console import Command, Narrator
from engine.cli.load_options import DeviceMap, Dtype, MaxMemory, read_load_options
from engine.errors import RequestError
from engine.inputs import user_path
from engine.models.placement import AUTO
from engine.store.names import DEFAULT_STORE

if TYPE_CHECKING:
    from server.app import LayerscopeServer

_LONGEST_END_S = 5.0
_ON_A_TERMINAL = (
    "waiting for an MCP client on standard input. Configure your client to start `{command}`, or listen with"
    " --http 127.0.0.1:8765. Ctrl+C stops the server."
)

HELP = """Serve captures and their analysis to LLM agents, over the Model Context Protocol.

[bold]Examples[/bold]

  layerscope serve
  layerscope serve --store runs --read-only
  layerscope serve --http 127.0.0.1:8765
  LAYERSCOPE_TOKEN=... layerscope serve --http 0.0.0.0:8765 --allow-host box.example:8765
"""


def serve(
    store: Annotated[Path, typer.Option("--store", "-s", help="Folder of captures; the server uses no other.")] = (
        DEFAULT_STORE
    ),
    http: Annotated[str | None, typer.Option(help="HOST:PORT to listen on, instead of stdin and stdout.")] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Offer only tools that change nothing.")] = False,
    tools: Annotated[list[str] | None, typer.Option(help="Tool to offer; repeat for several (default: all).")] = None,
    allow_model: Annotated[
        list[str] | None,
        typer.Option(help="Model to allow: alias, hub id or path; repeat for several (default: every alias)."),
    ] = None,
    memory_gb: Annotated[
        float | None,
        typer.Option(min=0.1, max=1e6, help="Memory for loaded weights in GB (default: half of the machine's)."),
    ] = None,
    dtype: Dtype = AUTO,
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token for HTTP clients (or: LAYERSCOPE_TOKEN).")
    ] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="Additional host:port for HTTP clients.")] = None,
    allow_origin: Annotated[list[str] | None, typer.Option(help="Web origin whose pages may call the server.")] = None,
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"],
        typer.Option(case_sensitive=False, help="Log level; logs go to stderr."),
    ] = "INFO",
) -> None:
    """Serve captures and their analysis to LLM agents."""
    if http is None and (token_file or allow_host or allow_origin):
        raise RequestError(
            "--token-file, --allow-host and --allow-origin protect HTTP, which is off", next_step="add --http"
        )
    from server.app import build_server
    from server.settings import ServerSettings, default_memory

    settings = ServerSettings(
        store=user_path(store).absolute(),
        read_only=read_only,
        tools=tuple(tools or ()),
        allowed_models=tuple(allow_model or ()),
        memory_bytes=int(memory_gb * 1e9) if memory_gb else default_memory(),
        load_options=read_load_options(dtype, device_map, max_memory),
        shared=http is not None,
    )
    settings.require_usable()
    log_to_stderr(log_level)
    app = build_server(settings)
    if http is None:
        if sys.stdin is not None and sys.stdin.isatty():
            Narrator(quiet=False).say(_ON_A_TERMINAL.format(command=shlex.join(["layerscope", *sys.argv[1:]])))
        _serve_stdio(app)
        return
    from server.http import build_http, listening, parse_address, read_token, serve_http

    address = parse_address(http)
    asgi = build_http(app, address, read_token(token_file), allow_host or [], allow_origin or [])
    with listening(address) as listener:
        Narrator(quiet=False).say(f"listening at http://{http}/mcp")
        serve_http(asgi, listener)


def _serve_stdio(app: LayerscopeServer) -> None:
    """Serve until stdin closes or a signal arrives, then exit cleanly."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    log = logging.getLogger("server")
    try:
        app.run("stdio")
    except* KeyboardInterrupt:
        log.info("stopped")
    except* (BrokenPipeError, ConnectionResetError):
        log.info("client disconnected")
    # The SDK's reader thread may still block on stdin, so the process is ended here, after the cancelled job has
    # stopped and cleaned up its files.
    app.at_work.acquire(timeout=_LONGEST_END_S)
    logging.shutdown()
    os._exit(0)


class JsonLines(logging.Formatter):
    """Formats a log record as one line of JSON, with its extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "from": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_to_stderr(level: str = "INFO") -> None:
    """Log to stderr as JSON lines; stdout belongs to the protocol."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("server", "engine"):
        logging.getLogger(name).setLevel(level)


COMMAND = Command("serve", serve, HELP)
