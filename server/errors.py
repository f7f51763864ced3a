"""Errors of tool calls: the text that the client receives, and the log entry."""

import errno
import functools
import inspect
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from anyio import to_thread
from mcp.server.mcpserver.exceptions import ToolError

from engine.errors import LayerscopeError, out_of_memory
from engine.remedies import Remedy

log = logging.getLogger("server")

OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)
"""Error numbers for file descriptors that are used up, by the process or on the machine."""

MOST_ERROR = 2000
"""Maximum number of characters of an error message."""

Tool = Callable[..., Any]


def guarded(tool: Tool) -> Callable[..., Awaitable[Any]]:
    """Wrap a tool to explain its errors to the client and log every call.

    Errors of the engine give the server's advice (`Remedy`), and a shortage of memory or file descriptors is named. Any
    other exception is a bug: the client gets an id, and the log has the traceback under that id. A tool that is not
    async runs in a thread.

    Args:
        tool: The tool's function.
    """

    @functools.wraps(tool)
    async def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any tool
        start, outcome = time.perf_counter(), "cancelled"
        try:
            if inspect.iscoroutinefunction(tool):
                result = await tool(*args, **kwargs)
            else:
                result = await to_thread.run_sync(functools.partial(tool, *args, **kwargs))
            outcome = "ok"
        except (LayerscopeError, ToolError) as error:
            outcome = "refused"
            raise ToolError(error.said("server") if isinstance(error, LayerscopeError) else str(error)) from error
        except Exception as error:
            said = explain_shortage(error)
            outcome = "refused" if said else "bug"
            raise ToolError(said or explain_bug(error, tool.__name__)) from error
        finally:
            fields = {"tool": tool.__name__, "outcome": outcome, "seconds": round(time.perf_counter() - start, 3)}
            log.info("call", extra={"fields": fields})
        return result

    return run


def explain_shortage(error: BaseException) -> str:
    """Explain an error of a machine that has run out of memory or file descriptors; empty for any other error.

    Args:
        error: The exception; its causes count too, because libraries wrap such errors.
    """
    causes = list(_causes(error))
    said = ""
    if any(map(out_of_memory, causes)):
        said = f"the machine is out of memory. Next: {Remedy.USE_LESS_MEMORY.words('server')}."
    elif any(isinstance(cause, OSError) and cause.errno in OUT_OF_FILES for cause in causes):
        said = (
            "the server has too many open files or connections. Next: repeat the call in a few seconds; if that does"
            " not help, tell the person who runs this server to raise its limit of open files."
        )
    if said:
        log.warning("shortage", extra={"fields": {"error": repr(causes[-1])}})
    return said


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that led to it; the chain may contain a loop."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def explain_bug(error: BaseException, where: str) -> str:
    """Log an unexpected error under an id, and return a message with that id.

    Args:
        error: The exception.
        where: The tool or job that raised it.
    """
    number = secrets.token_hex(4)
    log.error("bug", exc_info=error, extra={"fields": {"id": number, "in": where}})
    return (
        f"unexpected error {number} in {where}: a bug in layerscope, not in your call. The server's log has the details"
        " under this id. Next: try other arguments, or report it."
    )


def cut(text: str) -> str:
    """Cut the middle out of a long error message; its end says what to do next.

    Lone surrogates, which a client or a file name may contain, become question marks: UTF-8 cannot encode them.
    """
    text = text.encode(errors="replace").decode()
    half = MOST_ERROR // 2 - 2
    return text if len(text) <= MOST_ERROR else f"{text[:half]} … {text[-half:]}"
