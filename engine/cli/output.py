"""Standard output that is closed or full: the program says so in one sentence and ends, without a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from engine.errors import LayerscopeError

PIPE_CLOSED = 141
"""How a program ends whose reader has gone, as `head` does when it has seen enough: 128 and the number of SIGPIPE."""


class OutputError(LayerscopeError):
    """Standard output cannot be written."""

    exit_code = 6


class Output:
    """A stream whose failures are errors for people; all else is the stream's own.

    Args:
        stream: Where the text goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a stream has
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text; it may not arrive before `flush`."""
        with self._readable_errors():
            return self._stream.write(text)

    def flush(self) -> None:
        """Write what is waiting."""
        with self._readable_errors():
            self._stream.flush()

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self._abandon()
            sys.exit(PIPE_CLOSED)
        except OSError as error:
            self._abandon()
            raise OutputError(
                f"standard output cannot be written: {error.strerror}",
                expected="an open terminal, pipe or file with room",
                next_step="give the command another place to print to; what was saved stays",
            ) from error

    def _abandon(self) -> None:
        """Send what is still waiting nowhere: Python would try again when it ends, and complain."""
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextmanager
def standard_output() -> Iterator[None]:
    """While entered, what cannot be printed is an error for people."""
    before = sys.stdout
    sys.stdout = cast("TextIO", Output(before or _closed()))
    try:
        yield
    finally:
        sys.stdout = before


def _closed() -> TextIO:
    """What stands for standard output that was closed before the program began: writing it fails, when that is tried.

    It takes the place of standard output, so that no file of the program is opened there.
    """
    return os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")
