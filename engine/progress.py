"""How long work tells where it is. What such a function raises ends the work: that is how it is cancelled."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with how much is done, prompts or layers, and how much there is."""

Steps = Callable[[str, int, int], None]
"""Called with what is done beside running prompts, how much of it is, and of how much, 0 while that is unknown."""


def untold(*_said: object) -> None:
    """For work of which nobody wants to know how far it is: a `Progress` and a `Steps`."""
