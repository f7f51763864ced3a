"""What clients are shown: tools, their promises and schemas, and what narrows them."""

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
from server.app import LayerscopeServer, build_server
from server.settings import ServerSettings
from server.tools import TOOLS, offered_tools
from tests.server.conftest import ERAS, call, refused

pytestmark = pytest.mark.anyio

ORDER = [spec.name for spec in TOOLS]
CHANGING = {
    "load_model",
    "unload_model",
    "define_concept",
    "capture_contrast",
    "capture_prompt",
    "capture_prompts",
    "delete_capture",
    "extract_direction",
    "cancel_job",
}


@pytest.mark.parametrize("era", ERAS)
async def test_tools_come_in_a_fixed_order_with_every_promise_said(app: LayerscopeServer, era: str) -> None:
    async with Client(app, mode=era) as client:
        tools = (await client.list_tools()).tools
        assert client.instructions
        assert "rank_layers" in client.instructions
    assert [tool.name for tool in tools] == ORDER
    assert len(tools) <= 20
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


async def test_schemas_are_strict_and_say_what_each_argument_is(app: LayerscopeServer) -> None:
    async with Client(app) as client:
        tools = (await client.list_tools()).tools
    for tool in tools:
        assert tool.input_schema["type"] == "object"
        assert tool.input_schema["additionalProperties"] is False
        assert "ctx" not in tool.input_schema.get("properties", {})
        for name, schema in tool.input_schema.get("properties", {}).items():
            assert schema.get("description"), (tool.name, name)
            assert "title" not in schema


def test_read_only_and_a_choice_of_tools_narrow_the_list(settings: ServerSettings) -> None:
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


async def test_modern_clients_hear_of_captures_that_others_make(app: LayerscopeServer, store: Path) -> None:
    async with Client(app) as client, client.listen(resources_list_changed=True) as changes:
        assert len((await client.list_resources()).resources) == 3
        await anyio.sleep(0.1)  # the watcher has looked once
        data = engine.load_activations("prompt", store=store)
        engine.save_activations(data, "by-another", store=store)
        with anyio.fail_after(5):
            await anext(aiter(changes))
        assert "capture://by-another" in [str(entry.uri) for entry in (await client.list_resources()).resources]


async def test_legacy_clients_hear_of_captures_that_others_make(app: LayerscopeServer, store: Path) -> None:
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
        assert (ranking["layers"][0]["d_prime_by_left_out"] is not None) == (detail == "full")
        for arguments in ({}, {"layer": 1}, {"compare_with": "warmth"}):
            drawn = await client.call_tool("plot_capture", {"name": "loudness", "picture": False, **arguments})
            assert not drawn.is_error, drawn.content
            assert [block.type for block in drawn.content] == ["text"]
