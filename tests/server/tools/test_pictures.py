"""The tool that draws pictures and their text."""

import pytest
from mcp import Client
from mcp.types import CallToolResult, TextContent

from server.app import LayerscopeServer

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "loudness"}, ["loudness", "layer", "d'"]),
        ({"name": "loudness", "layer": 2}, ["layer 2"]),
        ({"name": "loudness", "compare_with": "warmth"}, ["loudness", "warmth"]),
        ({"name": "prompt"}, ["prompt", "norm"]),
    ],
)
async def test_pictures_come_with_text(app: LayerscopeServer, arguments: dict[str, object], words: list[str]) -> None:
    async with Client(app) as client:
        both = await client.call_tool("plot_capture", arguments)
        text_alone = await client.call_tool("plot_capture", {**arguments, "picture": False})
    assert isinstance(both, CallToolResult)
    assert isinstance(text_alone, CallToolResult)
    assert not both.is_error, both.content
    assert [block.type for block in both.content] == ["text", "image"]
    assert [block.type for block in text_alone.content] == ["text"]
    first = both.content[0]
    assert isinstance(first, TextContent)
    assert first == text_alone.content[0]
    assert all(word in first.text for word in words)
    assert len(first.text.encode()) <= 8192
