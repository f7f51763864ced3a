"""What every answer says, and how it is sent to clients of any kind."""

from mcp.types import CallToolResult, TextContent
from pydantic import BaseModel, Field

MOST_TEXT = 160
"""Characters of a prompt that a concise answer shows."""


class Reply(BaseModel):
    """What every answer says."""

    next_step: str = Field(default="", description="What to call next")
    warnings: list[str] = Field(default_factory=list, description="What to know before believing this")


def send(reply: BaseModel) -> CallToolResult:
    """An answer for clients that show their model the text and for those that show it the structure."""
    return CallToolResult(
        content=[TextContent(type="text", text=reply.model_dump_json(exclude_none=True, exclude_defaults=True))],
        structured_content=reply.model_dump(mode="json"),
    )


def shorten(text: str, most: int = MOST_TEXT) -> str:
    """A prompt on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def rounded(value: float, digits: int = 3) -> float:
    """A number with no more digits than it is worth."""
    return round(value, digits)
