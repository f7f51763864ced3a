"""Serve the app to a browser on this machine."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import cast

from aiohttp import web
from textual_serve.server import Server

_LOOPBACK = "127.0.0.1"
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
    " font-src 'self' data:; connect-src 'self' ws://{host}; frame-ancestors 'none'"
)


def serve_in_browser(arguments: Sequence[str], port: int) -> None:
    """Serve until interrupted, on the loopback interface only; each open page runs its own app.

    Args:
        arguments: Arguments of `layerscope` that open the app in a terminal.
        port: TCP port.
    """
    BrowserServer(shlex.join([sys.executable, "-m", "engine", *arguments]), port).serve()


_FOCUS = """<script>
  new MutationObserver((_changes, observer) => {
    const keyboard = document.querySelector(".xterm-helper-textarea");
    if (keyboard) { observer.disconnect(); keyboard.focus(); }
  }).observe(document.body, { childList: true, subtree: true });
</script>
</body>"""
"""Gives the keyboard to the terminal; textual-serve's page would wait for a click."""


class BrowserServer(Server):
    """A server whose page and connection no page from another origin can use.

    A browser sends requests to this machine for any page. The Host header gives away a foreign name that resolves to
    this machine, and the Origin header a foreign page.

    Args:
        command: Shell command that runs the app.
        port: TCP port.
    """

    def __init__(self, command: str, port: int) -> None:
        super().__init__(command, host=_LOOPBACK, port=port, title="layerscope")
        self._host_header = self.public_url.removeprefix("http://")

    async def handle_index(self, request: web.Request) -> web.StreamResponse:
        """Answer with the page, which may load nothing from elsewhere and be shown in no frame."""
        if request.headers.get("Host") == self._host_header.replace(_LOOPBACK, "localhost"):
            raise web.HTTPFound(f"{self.public_url}{request.rel_url}")
        self._require_own(request)
        response = cast("web.Response", await super().handle_index(request))
        response.text = str(response.text).replace("</body>", _FOCUS)
        response.headers["Content-Security-Policy"] = _POLICY.format(host=self._host_header)
        return response

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        """Run the app for a page of this server."""
        self._require_own(request)
        return await super().handle_websocket(request)

    async def handle_download(self, request: web.Request) -> web.StreamResponse:
        """Send a file that the app delivers."""
        self._require_own(request)
        return await super().handle_download(request)

    def _require_own(self, request: web.Request) -> None:
        own, headers = self.public_url, request.headers
        if headers.get("Host") != self._host_header or headers.get("Origin", own) != own:
            raise web.HTTPForbidden(text=f"Only the page at {own} can use this app. Open it there.")
