"""Limits on HTTP connections: how many are open, how long requests and answers may take, and how accepting fails."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import OUT_OF_FILES

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

log = logging.getLogger("server")

QUEUE = 128
"""Connections that the system holds until they are accepted."""
ACCEPTED_AT_ONCE = 4
"""Connections that are accepted before those over the limit are closed; each of them has a file descriptor."""
_OTHER_FILES = 32  # file descriptors that connections leave alone; half of the rest are for reading the store
_LOG_EVERY_S = 60.0
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
    b"content-length: 40\r\n\r\nToo many connections. Try again shortly."
)


@dataclass(frozen=True)
class HttpLimits:
    """Limits on connections.

    Attributes:
        connections: Maximum number of open connections.
        header_s: Seconds in which the headers of a request must arrive.
        request_s: Seconds in which the body must arrive after them.
        answer_s: Seconds in which the client must read what was sent.
    """

    connections: int = 200
    header_s: float = 10.0
    request_s: float = 60.0
    answer_s: float = 60.0

    @property
    def within_files(self) -> int:
        """The limit on connections, lower if the process may open few files."""
        if sys.platform == "win32":
            return self.connections
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if most == resource.RLIM_INFINITY:
            return self.connections
        return min(self.connections, max((most - _OTHER_FILES) // 2, 2))


class RareLog:
    """Logs a warning at most once a minute, however often it is due."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def warn(self, event: str) -> None:
        """Log an event, unless it has been logged in the last minute."""
        now = time.monotonic()
        if now - self._last.get(event, -_LOG_EVERY_S) >= _LOG_EVERY_S:
            self._last[event] = now
            log.warning(event)


@dataclass
class _Arriving:
    """The connections of a server whose request has not arrived yet, oldest first, each with its timer."""

    most: int
    rare: RareLog = field(default_factory=RareLog)
    timers: dict[H11Protocol, asyncio.TimerHandle] = field(default_factory=dict)


class _LimitedProtocol(H11Protocol):
    """HTTP/1.1 with deadlines for requests and answers; the oldest half-sent request makes room for a new one.

    Attributes:
        limits: The limits.
        arriving: The connections of the server that wait for their request.
    """

    limits: ClassVar[HttpLimits]
    arriving: ClassVar[_Arriving]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._due: object = None  # h11's state of the client when the timer was set
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # else writing pauses only when 64 KB are unread
        if len(self.connections) > self.arriving.most and not self._make_room():
            self.arriving.rare.warn("too many connections: new ones are refused")
            self.connections.discard(self)
            transport.write(_BUSY)
            transport.close()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.limits.answer_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_unread()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_unread()
        super().connection_lost(exc)

    def _stop_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for its request; return False if none does."""
        oldest = next(iter(self.arriving.timers), None)
        if oldest is None:
            return False
        self.connections.discard(oldest)
        self.arriving.timers.pop(oldest).cancel()
        oldest.transport.abort()
        return True

    def _watch(self) -> None:
        """Set the timer for what the client still has to send; stop it when the request has arrived."""
        state = self.conn.their_state
        if state is self._due or self.transport.is_closing():
            return
        self._stop_timer()
        seconds = {h11.IDLE: self.limits.header_s, h11.SEND_BODY: self.limits.request_s}.get(state)
        if seconds is not None:
            self._due = state
            self.arriving.timers[self] = self.loop.call_later(seconds, self._too_late)

    def _stop_timer(self) -> None:
        self._due = None
        if self in self.arriving.timers:
            self.arriving.timers.pop(self).cancel()

    def _too_late(self) -> None:
        self._stop_timer()
        self.transport.abort()


def limited_protocol(limits: HttpLimits) -> type[H11Protocol]:
    """Make the class that uvicorn speaks HTTP with, under limits that its connections share.

    uvicorn has no timeout for a request that never arrives in full or an answer that is never read, and no limit on
    open connections.

    Args:
        limits: The limits.
    """
    shared = {"limits": limits, "arriving": _Arriving(limits.within_files)}
    return type("LimitedProtocol", (_LimitedProtocol,), shared)


class Listener(socket.socket):
    """A listening socket that keeps its queue, although asyncio uses one number for that and for a round of accepts."""

    def listen(self, backlog: int = QUEUE, /) -> None:
        """Listen with the same queue at every call."""
        super().listen(max(backlog, QUEUE))


def survive_shortage(loop: asyncio.AbstractEventLoop) -> None:
    """Log once a minute that there are no file descriptors for new connections; asyncio pauses accepting for a second.

    asyncio logs a traceback for each connection that it fails to accept: tens of megabytes a minute.

    Args:
        loop: The event loop of the server.
    """
    rare = RareLog()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in OUT_OF_FILES:
            rare.warn("too many open files: new connections have to wait")
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)
