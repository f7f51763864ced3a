"""What a tool promises about itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mcp.types import ToolAnnotations


@dataclass(frozen=True)
class ToolSpec:
    """A tool and its promises.

    Attributes:
        function: What is called; its name is the tool's, its docstring what agents read.
        title: For people.
        writes: Whether it changes the store or what is loaded.
        destroys: Whether something is lost by it.
        repeatable: Whether calling it twice is the same as once.
        reaches_out: Whether it may use the network.
    """

    function: Callable[..., Any]
    title: str
    writes: bool = False
    destroys: bool = False
    repeatable: bool = True
    reaches_out: bool = False

    @property
    def name(self) -> str:
        """The tool's name."""
        return self.function.__name__

    @property
    def annotations(self) -> ToolAnnotations:
        """Every hint, said out loud."""
        return ToolAnnotations(
            title=self.title,
            read_only_hint=not self.writes,
            destructive_hint=self.destroys,
            idempotent_hint=self.repeatable,
            open_world_hint=self.reaches_out,
        )
