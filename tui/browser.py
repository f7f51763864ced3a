"""The same app in a browser on this machine. Knows textual-serve."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

_LOOPBACK = "127.0.0.1"


def serve_in_browser(arguments: Sequence[str], port: int) -> None:
    """Serve until interrupted: each page that opens runs an app of its own. Reached from this machine alone.

    Args:
        arguments: What follows `layerscope` on the command line, without `--serve`.
        port: Where.
    """
    from textual_serve.server import Server

    command = shlex.join([sys.executable, "-m", "engine", *arguments])
    Server(command, host=_LOOPBACK, port=port, title="layerscope").serve()
