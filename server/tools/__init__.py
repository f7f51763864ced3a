"""The tools, one file for each kind of thing they are about, in the order that clients see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.errors import RequestError, nearest
from server.tools import (
    captures,
    capturing,
    comparison,
    concepts,
    directions,
    jobs,
    layers,
    models,
    pictures,
    ranking,
)
from server.tools.spec import ToolSpec

if TYPE_CHECKING:
    from server.settings import ServerSettings

TOOLS: tuple[ToolSpec, ...] = (
    *models.TOOLS,
    *concepts.TOOLS,
    *capturing.TOOLS,
    *captures.TOOLS,
    *ranking.TOOLS,
    *layers.TOOLS,
    *comparison.TOOLS,
    *directions.TOOLS,
    *pictures.TOOLS,
    *jobs.TOOLS,
)


def offered_tools(settings: ServerSettings) -> list[ToolSpec]:
    """The tools that a server with these settings has, in their fixed order.

    Raises:
        RequestError: A tool was asked for that does not exist.
    """
    known = [spec.name for spec in TOOLS]
    for name in settings.tools:
        if name not in known:
            raise RequestError(f"there is no tool {name!r}; {nearest(name, known)}", expected=", ".join(known))
    wanted = settings.tools or tuple(known)
    return [spec for spec in TOOLS if spec.name in wanted and not (settings.read_only and spec.writes)]


def missing_tool(name: str, offered: Sequence[str]) -> str:
    """What to say of a tool that a server does not have: it was left out at the start, or there is none.

    Args:
        name: What was called.
        offered: Names of the tools that it has.
    """
    if name in {spec.name for spec in TOOLS}:
        return f"this server was started without {name} (--read-only or --tools). Its tools: {', '.join(offered)}."
    return f"there is no tool {name!r}; {nearest(name, offered)}"
