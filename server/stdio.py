"""The stdio transport, which answers lines that cannot be parsed too.

The SDK only logs an invalid message and drops it, so its client would wait forever.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp.types import INVALID_REQUEST, PARSE_ERROR, ErrorData, JSONRPCError, JSONRPCNotification
from pydantic import ValidationError

from server.errors import cut

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server
    from mcp.shared._stream_protocols import ReadStream, WriteStream

_LONE_SURROGATE = "the message contains a lone surrogate. Send both halves of the pair, or the character in UTF-8."
_NO_MESSAGE = "this is not a JSON-RPC 2.0 message. Expected: one object per line; batches are not supported."
_NOTIFICATION = "notifications/"  # how the method of every notification of the protocol begins
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')
_ID = re.compile(r'\s*:\s*("(?:[^"\\]|\\.)*"|-?\d{1,300})\s*[,}]')


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
            answer = _refusal(item)
            if answer is not None:
                with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):  # the client has disconnected
                    await self._outgoing.send(SessionMessage(answer))
            elif not isinstance(item, ValidationError):
                return item

    async def __aenter__(self) -> _Answered:
        await self._incoming.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> bool | None:  # noqa: ANN401 - Python's own signature
        return await self._incoming.__aexit__(*error)


def _refusal(item: SessionMessage | Exception) -> JSONRPCError | None:
    """Return the answer to an invalid message; None for a valid one, an empty line and a notification."""
    if isinstance(item, ValidationError):
        return _refusal_of_line(item)
    message = item.message if isinstance(item, SessionMessage) else None
    if isinstance(message, JSONRPCNotification) and not message.method.startswith(_NOTIFICATION):
        # The SDK takes a request whose id is null, a fraction or a list for a notification.
        return _error(None, INVALID_REQUEST, f"{message.method} needs an id: a string or a whole number")
    return None


def _refusal_of_line(error: ValidationError) -> JSONRPCError | None:
    details = error.errors(include_url=False, include_context=False)
    if details[0]["type"] == "json_invalid":
        line = str(details[0]["input"])
        said = _LONE_SURROGATE if _has_lone_surrogate(line) else details[0]["msg"]
        return _error(_id_in(line), PARSE_ERROR, said) if line.strip() else None
    sent = next((detail["input"] for detail in details if isinstance(detail["input"], dict)), None)
    if sent is not None and "id" not in sent:
        return None
    return _error(_sendable(sent.get("id") if sent else None), INVALID_REQUEST, _NO_MESSAGE)


def _error(number: str | int | None, code: int, said: str) -> JSONRPCError:
    return JSONRPCError(jsonrpc="2.0", id=number, error=ErrorData(code=code, message=cut(said)))


def _has_lone_surrogate(line: str) -> bool:
    """Whether a lone surrogate is what keeps a line from being parsed; Python's parser accepts those."""
    with suppress(ValueError, RecursionError):
        sent = json.loads(line)
        try:
            json.dumps(sent, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return True
    return False


def _id_in(line: str) -> str | int | None:
    """Find the id of a request that no parser accepts, such as one that is nested too deeply."""
    depth = 0
    for token in _TOKEN.finditer(line):
        text = token.group()
        if depth == 1 and text == '"id"' and (found := _ID.match(line, token.end())):
            with suppress(ValueError):
                return _sendable(json.loads(found.group(1)))
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(text, 0)
    return None


def _sendable(number: object) -> str | int | None:
    """Return the id of a request, if it is one that can be sent back."""
    if isinstance(number, int) and not isinstance(number, bool):
        return number
    return number if isinstance(number, str) and number.isprintable() else None
