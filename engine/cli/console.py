"""Command plug-ins, console output and progress for the command line."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import RenderableType
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from engine.errors import LayerscopeError, StoreError, visible
from engine.inputs import user_path
from engine.plots.layers_text import WIDTH
from engine.plots.visible_text import VisibleConsole
from engine.runtime import Steps
from engine.store.files import unwritable_part
from engine.store.names import is_folder

log = logging.getLogger(__name__)

INTERRUPTED = 130

GROUP = "layerscope.commands"
EVERY = 30.0  # seconds between lines of progress without a terminal
_UNESCAPED = re.compile("[\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # what `visible` escapes and a JSON string may hold


@dataclass(frozen=True)
class Command:
    """A subcommand of `layerscope`.

    Attributes:
        name: Name of the subcommand.
        function: Function to run; typer derives the options from its parameters.
        help: Help text.
        needs_arguments: Whether to show the help when no arguments are given.
    """

    name: str
    function: Callable[..., None]
    help: str
    needs_arguments: bool = False


@dataclass(frozen=True)
class CommandGroup:
    """A subcommand of `layerscope` with subcommands of its own.

    Attributes:
        name: Name of the subcommand.
        function: Function to run before a subcommand of its own, or alone; it tells them apart by the typer context.
        help: Help text.
        commands: Its subcommands.
    """

    name: str
    function: Callable[..., None]
    help: str
    commands: tuple[Command, ...]


def installed_names() -> list[str]:
    """Names of the commands in the entry-point group `layerscope.commands`."""
    return [entry.name for entry in _entry_points()]


def installed_commands(called: str = "") -> Iterator[Command]:
    """Import the commands of installed packages.

    A command that fails to import is skipped with a warning, so that the others still work.

    Args:
        called: Name of the only command to import; empty for all.
    """
    for entry in _entry_points():
        if called not in ("", entry.name):
            continue
        try:
            command = entry.load()
        except ImportError as error:
            log.warning("the command %s is unavailable: %s", entry.name, error)
            continue
        yield command


def _entry_points() -> list[EntryPoint]:
    """Entry points of installed packages, or of a checkout that is not installed."""
    found = [*entry_points(group=GROUP)]
    project = Path(__file__).parents[2] / "pyproject.toml"
    if not found and project.is_file():
        offered = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["entry-points"][GROUP]
        found = [EntryPoint(name, place, GROUP) for name, place in offered.items()]
    return sorted(found, key=lambda entry: entry.name)


PIPE_CLOSED = 141
"""Exit code after the reader of a pipe has exited, as `head` does: 128 plus the number of SIGPIPE."""


class OutputError(LayerscopeError):
    """Standard output cannot be written."""

    exit_code = 6


class Output:
    """A text stream that raises `OutputError` when writing fails.

    Args:
        stream: The stream to wrap; all other attributes are its own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any attribute of a stream
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text to the buffer."""
        with self._readable_errors():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write the buffer to the stream."""
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
                expected="an open terminal or pipe, or a file with enough disk space",
                next_step="redirect the output elsewhere; saved files are kept",
            ) from error

    def _abandon(self) -> None:
        """Discard the buffer, because Python would try to write it again at exit."""
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextmanager
def standard_output() -> Iterator[None]:
    """Make failures to write standard output raise `OutputError`."""
    before = sys.stdout
    sys.stdout = cast("TextIO", Output(before or _closed()))
    try:
        yield
    finally:
        sys.stdout = before


class Messages(Output):
    """Standard error: what cannot be written is dropped, because a message must not cost a run."""

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._abandon()


@contextmanager
def standard_error() -> Iterator[None]:
    """Drop messages that cannot be written, to a closed standard error or a pipe without a reader."""
    before = sys.stderr
    # A closed one has no descriptor: the next file would get number 2, and the messages of libraries.
    sys.stderr = cast("TextIO", Messages(before or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")))
    try:
        yield
    finally:
        sys.stderr = before


def _closed() -> TextIO:
    """A replacement for a closed standard output; writing to it fails.

    It occupies the file descriptor, so that no other file is opened as standard output.
    """
    return os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")


class _Visible(logging.Formatter):
    """Formats log messages with control characters as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def escape_stray_logs() -> None:
    """Escape control characters in warnings that are logged while no handler is installed."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Visible())


class _OncePerLine(logging.Filter):
    """Drops log records whose text was shown before."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = text not in self._shown
        self._shown.add(text)
        return new


class Interrupted(SystemExit):
    """Ends the program after Ctrl+C with a message in place of the general one.

    Args:
        said: What the interrupted command leaves.
    """

    def __init__(self, said: str) -> None:
        super().__init__(INTERRUPTED)
        self.said = said


class Narrator:
    """Prints messages and progress to stderr, unless quiet."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = VisibleConsole(stderr=True, quiet=quiet, highlight=False, emoji=False)
        self._quiet = quiet

    def say(self, text: str) -> None:
        """Print one message."""
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Show a spinner for work of unknown length, and the engine's log."""
        with self._console.status(Text(what)), self.engine_log():
            yield

    @contextmanager
    def engine_log(self) -> Iterator[None]:
        """Show the engine's log: everything, or only warnings if quiet; a line that every shard repeats only once."""
        handler = RichHandler(console=self._console, show_time=False, show_level=False, show_path=False, markup=False)
        handler.addFilter(_OncePerLine())
        log = logging.getLogger("engine")
        level = log.level
        log.addHandler(handler)
        log.setLevel(logging.WARNING if self._quiet else logging.INFO)
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.setLevel(level)

    @contextmanager
    def steps(self) -> Iterator[Steps]:
        """Show a progress bar for consecutive steps, and the engine's log.

        Without a terminal, print a line every half minute instead.

        Yields the `Steps` callback.
        """
        if not self._console.is_terminal:
            with self.engine_log():
                yield self._lines()
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:

            def report(step: str, done: int, total: int) -> None:
                if [task.description for task in progress.tasks] != [step]:
                    for task in progress.task_ids:
                        progress.remove_task(task)
                    progress.add_task(step, total=None)
                progress.update(progress.task_ids[0], completed=done, total=total or None)

            with self.engine_log():
                yield report

    def _lines(self) -> Steps:
        """Make a `Steps` callback that prints a line every half minute."""
        last = time.monotonic()

        def report(step: str, done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= EVERY:
                last = time.monotonic()
                self.say(f"{step}: {done:,} of {total:,}" if total else step)

        return report


def print_data(data: RenderableType) -> None:
    """Print data to stdout: colored on a terminal, else plain and 80 columns wide."""
    width = None if sys.stdout.isatty() else WIDTH
    VisibleConsole(width=width, highlight=False, markup=False, emoji=False).print(data)


def print_lines(text: str) -> None:
    """Print text to stdout without wrapping; control characters are shown as escapes."""
    sys.stdout.write(visible(text))


def figure_file(given: str | None) -> str | None:
    """Refuse a figure of an unknown format, or in a folder that cannot be written, before anything runs: a callback.

    A folder is not refused: `output_path` adds a name.

    Raises:
        RequestError: The suffix is not supported.
        StoreError: The file cannot be written.
    """
    if given is None:
        return None
    folder = user_path(given)
    if not is_folder(given):
        from engine.plots.style import require_format

        folder = require_format(given).parent
    if blocked := unwritable_part(folder):
        raise StoreError(
            f"{given} cannot be written: {blocked} is not a writable folder", next_step="choose another path"
        )
    return given


def print_json(data: bytes) -> None:
    """Print JSON to stdout; the control characters and marks that JSON allows in strings are escaped too."""
    sys.stdout.write(_UNESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", data.decode()) + "\n")
