"""Clients see the tools, their promises, and instructions that name only offered tools."""

import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.types import ResourceListChangedNotification

import engine
from engine.errors import RequestError
from server.app import LayerscopeServer, build_server, instructions_for
from server.settings import ServerSettings
from server.tools import TOOLS, missing_tool, offered_tools
from tests.server.conftest import ERAS, call, refused

pytestmark = pytest.mark.anyio

ORDER = [spec.name for spec in TOOLS]
CHANGING = {
    "load_model",
    "define_concept",
    "capture_contrast",
    "capture_prompts",
    "delete_capture",
    "extract_direction",
    "rank_causally",
    "cancel_job",
}


@pytest.mark.parametrize("era", ERAS)
async def test_tools_have_a_fixed_order_and_every_annotation(app: LayerscopeServer, era: str) -> None:
    async with Client(app, mode=era) as client:
        tools = (await client.list_tools()).tools
        assert client.instructions
        assert "rank_layers" in client.instructions
    assert [tool.name for tool in tools] == ORDER
    assert len(tools) == 19
    for tool in tools:
        hints = tool.annotations
        assert hints is not None
        assert None not in (
            hints.read_only_hint,
            hints.destructive_hint,
            hints.idempotent_hint,
            hints.open_world_hint,
        )
        assert hints.read_only_hint == (tool.name not in CHANGING)
        assert hints.destructive_hint == (tool.name == "delete_capture")
        assert tool.title
        assert tool.description
        assert (tool.output_schema is None) == (tool.name == "plot_capture")


def test_the_page_of_the_server_lists_every_tool_with_its_description() -> None:
    """`scripts/mcp_journey.py` prints the table."""
    page = (Path(__file__).parents[2] / "docs" / "mcp.md").read_text()
    assert re.findall(r"^\| `([a-z_]+)` \| (.*) \|$", page, re.MULTILINE) == [
        (spec.name, spec.description) for spec in TOOLS
    ]


async def test_schemas_are_strict_and_describe_each_argument(app: LayerscopeServer) -> None:
    async with Client(app) as client:
        tools = (await client.list_tools()).tools
    for tool in tools:
        assert tool.input_schema["type"] == "object"
        assert tool.input_schema["additionalProperties"] is False
        assert "ctx" not in tool.input_schema.get("properties", {})
        for name, schema in tool.input_schema.get("properties", {}).items():
            assert schema.get("description"), (tool.name, name)
            assert "title" not in schema


def test_read_only_and_tool_options_narrow_the_list(settings: ServerSettings) -> None:
    reading = [spec.name for spec in offered_tools(replace(settings, read_only=True))]
    assert reading == [name for name in ORDER if name not in CHANGING]
    chosen = replace(settings, tools=("delete_capture", "list_captures"))
    assert [spec.name for spec in offered_tools(chosen)] == ["list_captures", "delete_capture"]
    assert [spec.name for spec in offered_tools(replace(chosen, read_only=True))] == ["list_captures"]
    with pytest.raises(RequestError, match="rank_layers"):
        build_server(replace(settings, tools=("rank_layer",)))


@pytest.mark.parametrize("era", ERAS)
async def test_a_tool_that_is_not_offered_cannot_be_called(settings: ServerSettings, store: Path, era: str) -> None:
    async with Client(build_server(replace(settings, read_only=True)), mode=era) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == [n for n in ORDER if n not in CHANGING]
        assert "started without delete_capture" in await refused(client, "delete_capture", name="loudness")
        assert client.instructions
        usual, missing = client.instructions.split("\n")[1], client.instructions.split("\n")[-1]
        assert "capture_contrast" not in usual
        assert all(name in missing for name in CHANGING)
        assert (await call(client, "rank_layers", name="loudness"))["layers"]
    assert (store / "loudness.pt").exists()


async def test_modern_clients_are_notified_of_new_captures(app: LayerscopeServer, store: Path) -> None:
    async with Client(app) as client, client.listen(resources_list_changed=True) as changes:
        assert len((await client.list_resources()).resources) == 3
        await anyio.sleep(0.1)  # the watcher has looked once
        data = engine.load_activations("prompt", store=store)
        engine.save_activations(data, "by-another", store=store)
        with anyio.fail_after(5):
            await anext(aiter(changes))
        assert "capture://by-another" in [str(entry.uri) for entry in (await client.list_resources()).resources]


async def test_legacy_clients_are_notified_of_new_captures(app: LayerscopeServer, store: Path) -> None:
    heard = anyio.Event()

    async def note(message: Any) -> None:
        if isinstance(message, ResourceListChangedNotification):
            heard.set()

    async with Client(app, mode="legacy", message_handler=note) as client:
        await call(client, "list_captures")
        await anyio.sleep(0.1)
        engine.save_activations(engine.load_activations("prompt", store=store), "by-another", store=store)
        with anyio.fail_after(5):
            await heard.wait()
        assert "by-another" in [entry.name for entry in (await client.list_resources()).resources]


@pytest.mark.parametrize(("era", "detail"), list(product(ERAS, ("concise", "full"))))
async def test_two_captures_compared_and_drawn(app: LayerscopeServer, era: str, detail: str) -> None:
    async with Client(app, mode=era) as client:
        compared = await call(client, "compare_captures", one="loudness", other="warmth")
        assert [row["layer"] for row in compared["rows"]] == [0, 1, 2, 3]
        ranking = await call(client, "rank_layers", name="warmth", detail=detail, top=2)
        assert ranking["left_out"] == 2
        assert ("d_prime_by_left_out" in ranking["layers"][0]) == (detail == "full")
        for arguments in ({}, {"layer": 1}, {"compare_with": "warmth"}):
            drawn = await client.call_tool("plot_capture", {"name": "loudness", "picture": False, **arguments})
            assert not drawn.is_error, drawn.content
            assert [block.type for block in drawn.content] == ["text"]


NAMES = [spec.name for spec in TOOLS]


def named(text: str) -> set[str]:
    return set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", text)) & set(NAMES)


def test_with_every_tool_nothing_is_missing(tmp_path: Path) -> None:
    said = instructions_for(offered_tools(ServerSettings(tmp_path)))
    assert "does not offer" not in said
    assert {"list_concepts", "capture_contrast", "rank_layers", "plot_capture", "wait_for_job"} == named(said)


@pytest.mark.parametrize("changes", [{"read_only": True}, {"tools": ("rank_layers",)}, {"tools": ("cancel_job",)}])
def test_instructions_use_offered_tools_and_name_the_others(tmp_path: Path, changes: dict[str, object]) -> None:
    offered = offered_tools(replace(ServerSettings(tmp_path), **changes))  # type: ignore[arg-type]
    names = {spec.name for spec in offered}
    lines = instructions_for(offered).split("\n")
    assert named(lines[1]) <= names
    assert named(lines[-1]) == set(NAMES) - names


def test_a_tool_not_offered_is_distinguished_from_an_unknown_one() -> None:
    assert "started without delete_capture" in missing_tool("delete_capture", ["rank_layers"])
    assert "did you mean 'rank_layers'?" in missing_tool("rank_layer", ["rank_layers"])
