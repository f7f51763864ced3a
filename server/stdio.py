"""Standard input and output, where every request is answered, also one that cannot be read.

The SDK drops a line that is no message, with nothing but a note in its log: its client would wait for ever.
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

_HALF = "the message holds half a character. Send both halves of a surrogate pair, or the character itself in UTF-8."


async def serve_stdio(server: Server[Any]) -> None:
    """Serve until stdin ends.

    Args:
        server: The SDK's server.
    """
    async with stdio_server() as (incoming, outgoing):
        answered = _Answered(incoming, outgoing)
        await server.run(answered, outgoing, server.create_initialization_options())


class _Answered:
    """The messages that come in; the answer to a line that is none goes out at once."""

    def __init__(self, incoming: ReadStream[SessionMessage | Exception], outgoing: WriteStream[SessionMessage]) -> None:
        self._incoming, self._outgoing = incoming, outgoing

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else that a stream has
        return getattr(self._incoming, name)

    def __aiter__(self) -> _Answered:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        """The next message."""
        while True:
            item = await self._incoming.__anext__()
            if not isinstance(item, ValidationError):
                return item
            if answer := _refusal(item):
                with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):  # the client has gone
                    await self._outgoing.send(SessionMessage(answer))

    async def __aenter__(self) -> _Answered:
        await self._incoming.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> bool | None:  # noqa: ANN401 - Python's own signature
        return await self._incoming.__aexit__(*error)


def _refusal(error: ValidationError) -> JSONRPCError | None:
    """The answer to what is no message; None where none is due: for an empty line and for a notification."""
    details = error.errors(include_url=False, include_context=False)
    if details[0]["type"] == "json_invalid":
        line = str(details[0]["input"])
        sent = _parsed(line)
        code, said = PARSE_ERROR, details[0]["msg"] if sent is None else _HALF
        due = bool(line.strip())
    else:
        sent = next((detail["input"] for detail in details if isinstance(detail["input"], dict)), None)
        code, said = INVALID_REQUEST, "this is no message of JSON-RPC 2.0"
        due = sent is None or "id" in sent
    answer = JSONRPCError(jsonrpc="2.0", id=_number_in(sent), error=ErrorData(code=code, message=cut(said)))
    return answer if due else None


def _parsed(line: str) -> object:
    """What a line says to a reader that takes halves of characters; None if nothing."""
    with suppress(ValueError, RecursionError):
        return json.loads(line)
    return None


def _number_in(message: object) -> str | int | None:
    """The id of a request, if it can be made out and sent back."""
    number = message.get("id") if isinstance(message, dict) else None
    if isinstance(number, int) and not isinstance(number, bool):
        return number
    return number if isinstance(number, str) and number.isprintable() else None
