"""Schemas of tools: strict, without titles, otherwise what they were."""

import anyio
from mcp.types import Tool

from server.app import build_server
from server.schemas import strict
from server.settings import ServerSettings

INPUT = {
    "type": "object",
    "title": "noteArguments",
    "properties": {"title": {"type": "string", "title": "Title"}, "n": {"anyOf": [{"type": "null", "title": "N"}]}},
    "required": ["title"],
}


def test_only_titles_that_repeat_names_go() -> None:
    tool = strict(Tool(name="note", input_schema=INPUT, output_schema={"title": "Note", "type": "object"}))
    assert tool.input_schema == {
        "type": "object",
        "properties": {"title": {"type": "string"}, "n": {"anyOf": [{"type": "null"}]}},
        "required": ["title"],
        "additionalProperties": False,
    }
    assert tool.output_schema == {"type": "object"}
    assert strict(Tool(name="note", input_schema=INPUT)).output_schema is None


def test_all_that_agents_read_of_the_tools_is_short(settings: ServerSettings) -> None:
    """Names, descriptions and input schemas: what clients put before their model, every time."""
    tools = anyio.run(build_server(settings).list_tools)
    assert sum(len(str(tool.input_schema)) + len(tool.description or "") for tool in tools) < 20_000
