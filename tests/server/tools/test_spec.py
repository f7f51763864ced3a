"""Schemas of tools: strict, compact, valid for every answer, and short in total."""

import json

import anyio
import pytest
from mcp import Client
from mcp.types import ListToolsResult, Tool

from engine.capture.sites import SITES
from engine.stats.scores import SCORES
from server.app import LayerscopeServer, build_server
from server.settings import ServerSettings
from server.tools.spec import compact
from tests.server.conftest import ERAS, has_null

MOST_CHARACTERS = 32_000

INPUT = {
    "type": "object",
    "title": "noteArguments",
    "properties": {"title": {"type": "string", "title": "Title"}, "n": {"anyOf": [{"type": "null", "title": "N"}]}},
    "required": ["title"],
}


def test_only_titles_that_repeat_names_are_dropped() -> None:
    tool = compact(Tool(name="note", input_schema=INPUT, output_schema={"title": "Note", "type": "object"}))
    assert tool.input_schema == {
        "type": "object",
        "properties": {"title": {"type": "string"}, "n": {"anyOf": [{"type": "null"}]}},
        "required": ["title"],
        "additionalProperties": False,
    }
    assert tool.output_schema == {"type": "object"}
    assert compact(Tool(name="note", input_schema=INPUT)).output_schema is None


def test_nulls_lengths_and_output_defaults_are_dropped() -> None:
    said = {
        "description": "A note.",
        "type": "object",
        "properties": {
            "description": {"type": "string", "maxLength": 9, "description": "Its text"},
            "default": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None, "description": "A number"},
            "span": {"prefixItems": [{"type": "number"}] * 2, "minItems": 2, "maxItems": 2, "type": "array"},
            "step": {"type": "string", "default": "none"},
            "either": {"anyOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}]},
        },
    }
    tool = compact(Tool(name="note", input_schema=said, output_schema=said))
    assert tool.output_schema == {
        "type": "object",
        "properties": {
            "description": {"type": "string", "description": "Its text"},
            "default": {"type": "integer", "description": "A number"},
            "span": {"type": "array", "items": {"type": "number"}},
            "step": {"type": "string"},
            "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        },
    }
    assert tool.input_schema["description"] == "A note."
    assert tool.input_schema["properties"]["step"]["default"] == "none"
    assert tool.input_schema["properties"]["default"] == {"type": "integer", "description": "A number"}


@pytest.mark.anyio
@pytest.mark.parametrize("era", ERAS)
async def test_the_list_of_tools_is_short(era: str, app: LayerscopeServer) -> None:
    """The list as clients receive it, with schemas and annotations."""
    async with Client(app, mode=era) as client:
        listed = await client.list_tools()
    assert isinstance(listed, ListToolsResult)
    assert len(listed.tools) == 19
    text = listed.model_dump_json(by_alias=True, exclude_none=True)
    assert len(text) <= MOST_CHARACTERS
    assert not has_null(json.loads(text))
    assert '"type":"null"' not in text


@pytest.mark.anyio
async def test_choices_come_from_the_engine(app: LayerscopeServer) -> None:
    async with Client(app) as client:
        tools = {tool.name: tool.input_schema["properties"] for tool in (await client.list_tools()).tools}
    for site in SITES:
        assert site in tools["capture_contrast"]["site"]["description"]
        assert site in tools["capture_prompts"]["site"]["description"]
    for score in SCORES:
        assert f"{score.key}: {score.meaning}" in tools["rank_layers"]["score"]["description"]


def test_the_text_that_agents_read_is_short(settings: ServerSettings) -> None:
    """Names, descriptions and input schemas: what clients show their model."""
    tools = anyio.run(build_server(settings).list_tools)
    assert sum(len(str(tool.input_schema)) + len(tool.description or "") for tool in tools) < 20_000
