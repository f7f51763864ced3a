"""What the command line says while it works: narration and progress on stderr, data on stdout."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from engine.plots.layers_text import WIDTH
from engine.progress import Steps


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
