"""How a shell adds a command to `layerscope` without the command line knowing the shell."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

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
