"""The stdio transport, which answers lines that cannot be parsed too.

The SDK only logs an invalid message and drops it, so its client would wait forever.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp.types import INVALID_REQUEST, PARSE_ERROR, ErrorData, JSONRPCError
from pydantic import ValidationError

from server.errors import cut

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server
    from mcp.shared._stream_protocols import ReadStream, WriteStream

_LONE_SURROGATE = "the message contains a lone surrogate. Send both halves of the pair, or the character in UTF-8."


async def serve_stdio(server: Server[Any]) -> None:
    """Serve until stdin closes.

    Args:
        server: The SDK's server.
    """
    async with stdio_server() as (incoming, outgoing):
        answered = _Answered(incoming, outgoing)
        await server.run(answered, outgoing, server.create_initialization_options())


class _Answered:
    """The incoming messages; invalid ones are answered at once and skipped."""

    def __init__(self, incoming: ReadStream[SessionMessage | Exception], outgoing: WriteStream[SessionMessage]) -> None:
        self._incoming, self._outgoing = incoming, outgoing

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any other attribute of the stream
        return getattr(self._incoming, name)

    def __aiter__(self) -> _Answered:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        """Return the next valid message."""
        while True:
            item = await self._incoming.__anext__()
            if not isinstance(item, ValidationError):
                return item
            if answer := _refusal(item):
                with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):  # the client has disconnected
                    await self._outgoing.send(SessionMessage(answer))

    async def __aenter__(self) -> _Answered:
        await self._incoming.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> bool | None:  # noqa: ANN401 - Python's own signature
        return await self._incoming.__aexit__(*error)


def _refusal(error: ValidationError) -> JSONRPCError | None:
    """Return the answer to an invalid message; None if it needs none.

    Empty lines and notifications need none.
    """
    details = error.errors(include_url=False, include_context=False)
    if details[0]["type"] == "json_invalid":
        line = str(details[0]["input"])
        sent = _parsed(line)
        code, said = PARSE_ERROR, details[0]["msg"] if sent is None else _LONE_SURROGATE
        due = bool(line.strip())
    else:
        sent = next((detail["input"] for detail in details if isinstance(detail["input"], dict)), None)
        code, said = INVALID_REQUEST, "this is not a JSON-RPC 2.0 message"
        due = sent is None or "id" in sent
    answer = JSONRPCError(jsonrpc="2.0", id=_number_in(sent), error=ErrorData(code=code, message=cut(said)))
    return answer if due else None


def _parsed(line: str) -> object:
    """Parse a line that may contain lone surrogates; None if it is not JSON."""
    with suppress(ValueError, RecursionError):
        return json.loads(line)
    return None


def _number_in(message: object) -> str | int | None:
    """Return the id of a request, if it has one that can be sent back."""
    number = message.get("id") if isinstance(message, dict) else None
    if isinstance(number, int) and not isinstance(number, bool):
        return number
    return number if isinstance(number, str) and number.isprintable() else None
