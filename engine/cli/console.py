"""How a shell adds a command to `layerscope` without the command line knowing the shell."""

from __future__ import annotations

import logging
import os
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console, RenderableType
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from engine.errors import LayerscopeError
from engine.plots.layers_text import WIDTH
from engine.runtime import Steps

log = logging.getLogger(__name__)

GROUP = "layerscope.commands"


@dataclass(frozen=True)
class Command:
    """A command of the program.

    Attributes:
        name: What is typed.
        function: What runs; its parameters are the command's.
        help: What `--help` shows.
        needs_arguments: Whether it shows its help when nothing else is typed.
    """

    name: str
    function: Callable[..., None]
    help: str
    needs_arguments: bool = False


def installed_names() -> list[str]:
    """Names of the commands that installed packages offer through the entry-point group `layerscope.commands`."""
    return [entry.name for entry in _entry_points()]


def installed_commands(called: str = "") -> Iterator[Command]:
    """These commands, imported.

    One that cannot be imported is left out with a warning: the others must go on working.

    Args:
        called: The only one wanted; all unless given.
    """
    for entry in _entry_points():
        if called not in ("", entry.name):
            continue
        try:
            command = entry.load()
        except ImportError as error:
            log.warning("the command %s cannot be used: %s", entry.name, error)
            continue
        yield command


def _entry_points() -> list[EntryPoint]:
    """What installed packages offer; of a checkout that is not installed, what its pyproject.toml says it will."""
    found = [*entry_points(group=GROUP)]
    project = Path(__file__).parents[2] / "pyproject.toml"
    if not found and project.is_file():
        offered = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["entry-points"][GROUP]
        found = [EntryPoint(name, place, GROUP) for name, place in offered.items()]
    return sorted(found, key=lambda entry: entry.name)


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


class Narrator:
    """Speaks to a person on stderr, unless told to be quiet."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._quiet = quiet

    def say(self, text: str) -> None:
        """One line of narration."""
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Show that something of unknown length goes on, with the engine's own narration."""
        with self._console.status(what), self.engine_log():
            yield

    @contextmanager
    def engine_log(self) -> Iterator[None]:
        """Let what the engine logs through: all of it, or only warnings when quiet."""
        handler = RichHandler(console=self._console, show_time=False, show_level=False, show_path=False, markup=False)
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
        """A progress bar for one step after another, with the engine's own narration; yields what is to be told."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(
            *columns, console=self._console, transient=True, disable=not self._console.is_terminal
        ) as progress:

            def tell(step: str, done: int, total: int) -> None:
                if [task.description for task in progress.tasks] != [step]:
                    for task in progress.task_ids:
                        progress.remove_task(task)
                    progress.add_task(step, total=None)
                progress.update(progress.task_ids[0], completed=done, total=total or None)

            with self.engine_log():
                yield tell


def print_data(data: RenderableType) -> None:
    """Print what was asked for: in colour on a terminal, plain and 80 columns wide into a pipe or file."""
    Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, markup=False).print(data)


def print_lines(text: str) -> None:
    """Print text as it is, however long its lines."""
    sys.stdout.write(text)


def print_json(data: bytes) -> None:
    """Print JSON as it is."""
    sys.stdout.write(data.decode() + "\n")
