"""The HTTP transport: loopback only without a token; checks hosts and origins."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from mcp.server.transport_security import TransportSecuritySettings
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

from engine.errors import RequestError
from engine.inputs import user_path
from server.connections import (
    ACCEPTED_AT_ONCE,
    QUEUE,
    HttpLimits,
    Listener,
    limited_protocol,
    survive_shortage,
)

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from server.app import LayerscopeServer

TOKEN_VARIABLE = "LAYERSCOPE_TOKEN"  # noqa: S105 - the name of a variable, no secret
_SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Address:
    """The address that a server listens on.

    Attributes:
        host: Host name or IP address.
        port: TCP port.
    """

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False


def parse_address(text: str) -> Address:
    """Parse HOST:PORT.

    Raises:
        RequestError: The text is not an address.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise RequestError(f"{text!r} is not an address", expected="HOST:PORT, such as 127.0.0.1:8765")
    return Address(host, int(port))


def read_token(path: Path | None) -> str | None:
    """Read the bearer token from a file, else from the environment.

    Args:
        path: A file that holds only the token.

    Returns:
        The token; None if no file is given and the environment has none.

    Raises:
        RequestError: The file cannot be read, or the token is too short or is not printable ASCII.
    """
    try:
        given = user_path(path).read_text(encoding="utf-8-sig") if path else os.environ.get(TOKEN_VARIABLE, "")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"the token file {path} cannot be read: {error}") from error
    token = given.strip()
    if not token and path is None:
        return None
    if len(token) < _SHORTEST_TOKEN:
        raise RequestError(
            f"the token has {len(token)} characters",
            expected=f"at least {_SHORTEST_TOKEN}, such as `openssl rand -hex 32`",
        )
    if not re.fullmatch(r"[!-~]+", token):
        raise RequestError(
            "the token has a space or a character that is not ASCII", expected="printable ASCII without spaces"
        )
    return token


class BearerGate:
    """Middleware that refuses requests without the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, or answer 401."""
        if scope["type"] == "http":
            scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            if not hmac.compare_digest(given.encode(), self._token) or scheme.lower() != "bearer":
                refusal = PlainTextResponse(
                    "A bearer token is needed.\n", status_code=401, headers={"WWW-Authenticate": "Bearer"}
                )
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


def build_http(
    app: LayerscopeServer, address: Address, token: str | None, hosts: list[str], origins: list[str]
) -> ASGIApp:
    """Build the ASGI application.

    Args:
        app: The server.
        address: The address that it will listen on.
        token: The bearer token for clients; required beyond loopback.
        hosts: Additional host:port names that clients may use.
        origins: Web origins whose pages may call it.

    Raises:
        RequestError: It would listen beyond loopback without a token.
    """
    if not address.loopback and token is None:
        raise RequestError(
            f"{address.host} can be reached from other machines, which requires a token",
            next_step=f"set {TOKEN_VARIABLE}, give --token-file, or listen on 127.0.0.1",
        )
    own = [f"{name}:{address.port}" for name in dict.fromkeys([address.host, "127.0.0.1", "localhost", "[::1]"])]
    security = TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=[*own, *hosts],
        allowed_origins=[*(f"http://{name}" for name in own), *origins],
    )
    served = app.streamable_http_app(host=address.host, transport_security=security)
    return served if token is None else BearerGate(served, token)


@contextmanager
def listening(address: Address) -> Iterator[socket.socket]:
    """Open a listening socket.

    Raises:
        RequestError: The address is taken, or not one of this machine.
    """
    host = address.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, address.port), family=family, backlog=QUEUE)
    except OSError as error:
        raise RequestError(
            f"nothing can listen at {address.host}:{address.port}: {error.strerror or error}",
            next_step="give --http another port, or an address of this machine",
        ) from error
    with Listener(family, socket.SOCK_STREAM, fileno=listener.detach()) as kept:
        yield kept


def serve_http(asgi: ASGIApp, listener: socket.socket) -> None:
    """Serve until the process is told to stop."""
    asyncio.run(serve_until(http_server(asgi, HttpLimits()), listener))


def http_server(asgi: ASGIApp, limits: HttpLimits) -> uvicorn.Server:
    """Build the HTTP server for an application.

    Args:
        asgi: The application.
        limits: Limits on its connections.
    """
    config = uvicorn.Config(
        asgi,
        http=limited_protocol(limits),
        log_config=None,
        backlog=ACCEPTED_AT_ONCE,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


async def serve_until(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serve in the running event loop until the server is told to stop."""
    survive_shortage(asyncio.get_running_loop())
    await server.serve(sockets=[listener])
