"""The tools, one file per subject, in the order in which clients list them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.errors import RequestError, nearest
from server.tools import captures, capturing, causal, concepts, directions, jobs, models, pictures, ranking, steering
from server.tools.spec import ToolSpec

if TYPE_CHECKING:
    from server.settings import ServerSettings

TOOLS: tuple[ToolSpec, ...] = (
    *models.TOOLS,
    *concepts.TOOLS,
    *capturing.TOOLS,
    *captures.TOOLS,
    *ranking.TOOLS,
    *directions.TOOLS,
    *steering.TOOLS,
    *causal.TOOLS,
    *pictures.TOOLS,
    *jobs.TOOLS,
)
_RENAMED = {
    "capture_prompt": "capture_prompts(prompts=[...])",
    "show_concept": "list_concepts(name=...)",
    "unload_model": "load_model(model=..., unload=true)",
}


def offered_tools(settings: ServerSettings) -> list[ToolSpec]:
    """Return the tools that a server with these settings offers, in their fixed order.

    Raises:
        RequestError: The settings name a tool that does not exist.
    """
    known = [spec.name for spec in TOOLS]
    for name in settings.tools:
        if name not in known:
            raise RequestError(missing_tool(name, known), expected=", ".join(known))
    wanted = settings.tools or tuple(known)
    return [spec for spec in TOOLS if spec.name in wanted and not (settings.read_only and spec.writes)]


def missing_tool(name: str, offered: Sequence[str]) -> str:
    """Explain why a server does not have a tool.

    Args:
        name: The requested name.
        offered: Names of the tools that the server offers.
    """
    if name in _RENAMED:
        return f"there is no tool {name!r} any more; call {_RENAMED[name]}"
    if name in {spec.name for spec in TOOLS}:
        return f"this server was started without {name} (--read-only or --tools). Its tools: {', '.join(offered)}."
    return f"there is no tool {name!r}; {nearest(name, offered)}"
