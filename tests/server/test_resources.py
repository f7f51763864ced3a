"""Resources by URI, completion of names, and prompts that name only tools that exist."""

import json
import os
import re
from pathlib import Path

import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp.types import PromptReference, ResourceTemplateReference, TextContent, TextResourceContents

from engine.store.catalog import show_capture
from server.app import LayerscopeServer, build_server
from server.settings import ServerSettings
from server.tools import TOOLS
from tests.server.conftest import ERAS, Json

pytestmark = pytest.mark.anyio


async def read(client: Client, uri: str) -> Json:
    content = (await client.read_resource(uri)).contents[0]
    assert isinstance(content, TextResourceContents)
    assert content.mime_type == "application/json"
    found: Json = json.loads(content.text)
    return found


@pytest.mark.parametrize("era", ERAS)
async def test_captures_concepts_and_models_can_be_read(app: LayerscopeServer, store: Path, era: str) -> None:
    async with Client(app, mode=era) as client:
        listed = [str(entry.uri) for entry in (await client.list_resources()).resources]
        assert sorted(listed) == ["capture://loudness", "capture://prompt", "capture://warmth"]
        record = await read(client, "capture://loudness")
        assert record["prompts"] == show_capture("loudness", store=store)["prompts"]
        assert record["ranking"]["layers"]
        assert (await read(client, "concept://warmth"))["name"] == "warmth"
        assert (await read(client, "concept://honesty"))["negative"] == "deceptive"
        assert (await read(client, "model://tiny"))["alias"] == "tiny"
        templates = [entry.uri_template for entry in (await client.list_resource_templates()).resource_templates]
        assert templates == ["capture://{name}", "concept://{name}", "model://{alias}"]


async def test_a_missing_store_is_empty(tmp_path: Path) -> None:
    async with Client(build_server(ServerSettings(tmp_path / "none"))) as client:
        assert (await client.list_resources()).resources == []
        assert (await read(client, "model://smollm2"))["layers"] == 30
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("reference", "argument", "begin", "expected"),
    [
        (ResourceTemplateReference(uri="capture://{name}"), "name", "lo", ["loudness"]),
        (ResourceTemplateReference(uri="capture://{name}"), "name", "x", []),
        (ResourceTemplateReference(uri="concept://{name}"), "name", "WAR", ["warmth"]),
        (ResourceTemplateReference(uri="model://{alias}"), "alias", "", ["tiny", "slow"]),
        (PromptReference(name="find_layers"), "concept", "hon", ["honesty"]),
        (PromptReference(name="find_layers"), "model", "t", ["tiny"]),
        (PromptReference(name="audit_contrast"), "capture", "war", ["warmth"]),
        (PromptReference(name="compare_concepts"), "one", "loud", ["loudness"]),
    ],
)
async def test_names_are_completed(
    app: LayerscopeServer,
    era: str,
    reference: ResourceTemplateReference | PromptReference,
    argument: str,
    begin: str,
    expected: list[str],
) -> None:
    async with Client(app, mode=era) as client:
        found = await client.complete(reference, {"name": argument, "value": begin})
    assert found.completion.values == expected


ARGUMENTS = {
    "find_layers": {"concept": "honesty", "model": "tiny"},
    "compare_concepts": {"one": "honesty", "other": "empathy"},
    "audit_contrast": {"capture": "loudness"},
}


@pytest.mark.parametrize("era", ERAS)
async def test_prompts_take_their_arguments_and_name_real_tools(app: LayerscopeServer, era: str) -> None:
    tools = {spec.name for spec in TOOLS}
    async with Client(app, mode=era) as client:
        assert [prompt.name for prompt in (await client.list_prompts()).prompts] == list(ARGUMENTS)
        for name, arguments in ARGUMENTS.items():
            content = (await client.get_prompt(name, arguments)).messages[0].content
            assert isinstance(content, TextContent)
            assert all(f"'{value}'" in content.text for value in arguments.values())
            called = set(re.findall(r"\b[a-z]+_[a-z]+(?=\(|:|,| with| at)", content.text))
            assert called
            assert called <= tools | {"random_within", "halves_reach", "compare_with"}


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("find_layers", {}, "needs concept. Expected: concept: A concept, e.g. honesty"),
        ("compare_concepts", {"one": "honesty"}, "needs other"),
        ("audit_contrast", {"captur": "loudness"}, "needs capture"),
        ("find_layers", {"concept": "honesty", "modle": "tiny"}, "did you mean 'model'"),
        ("find_layer", {}, "did you mean 'find_layers'"),
    ],
)
async def test_wrong_arguments_of_a_prompt_are_invalid_params(
    app: LayerscopeServer, era: str, name: str, arguments: dict[str, str], said: str
) -> None:
    async with Client(app, mode=era) as client:
        with pytest.raises(MCPError, match=re.escape(said)) as caught:
            await client.get_prompt(name, arguments)
    assert caught.value.error.code == -32602


@pytest.mark.parametrize("era", ERAS)
async def test_pages_and_completions_stay_within_eight_kilobytes(
    settings: ServerSettings, store: Path, era: str
) -> None:
    record = json.loads((store / "loudness.json").read_text())
    names = [f"{number:03}{'x' * (125 if number % 2 else 3)}" for number in range(120)]
    for name in names:
        record |= {"name": name, "data": record["data"] | {"name": f"{name}.pt"}}
        (store / f"{name}.json").write_text(json.dumps(record))
        os.link(store / "loudness.pt", store / f"{name}.pt")
    listed: list[str] = []
    async with Client(build_server(settings), mode=era) as client:
        cursor = None
        while True:
            page = await client.list_resources(cursor=cursor)
            assert 0 < len(page.resources) <= 50
            assert len(page.model_dump_json(by_alias=True, exclude_none=True).encode()) <= 8192
            listed += [entry.name for entry in page.resources]
            cursor = page.next_cursor
            if cursor is None:
                break
        with pytest.raises(MCPError, match="list from the start") as caught:
            await client.list_resources(cursor="gone")
        found = await client.complete(ResourceTemplateReference(uri="capture://{name}"), {"name": "name", "value": ""})
    assert caught.value.error.code == -32602
    assert sorted(listed) == sorted([*names, "loudness", "warmth", "prompt"])
    assert 0 < len(found.completion.values) <= 50
    assert (found.completion.total, found.completion.has_more) == (123, True)
    assert len(found.model_dump_json(by_alias=True).encode()) <= 8192
