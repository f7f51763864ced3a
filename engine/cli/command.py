"""How a shell adds a command to `layerscope` without the command line knowing the shell."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points

log = logging.getLogger(__name__)

GROUP = "layerscope.commands"


@dataclass(frozen=True)
class Command:
    """A command of the program.

    Attributes:
        name: What is typed.
        function: What runs; its parameters are the command's.
        help: What `--help` shows.
    """

    name: str
    function: Callable[..., None]
    help: str


def installed_commands() -> Iterator[Command]:
    """Commands that installed packages offer through the entry-point group `layerscope.commands`.

    One that cannot be imported is left out with a warning: the others must go on working.
    """
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            command = entry.load()
        except ImportError as error:
            log.warning("the command %s cannot be used: %s", entry.name, error)
            continue
        yield command
