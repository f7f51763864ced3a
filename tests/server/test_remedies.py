"""What agents are told to do are tools that there are, with arguments that they have."""

import re
from pathlib import Path

import anyio
import pytest
from mcp import Client

from engine.errors import Remedy
from server.app import LayerscopeServer, build_server
from server.remedies import REMEDIES
from server.settings import ServerSettings
from tests.server.conftest import refused


def test_every_remedy_is_said() -> None:
    assert set(REMEDIES) == set(Remedy)


def test_tools_and_arguments_exist(tmp_path: Path) -> None:
    tools = {tool.name: tool for tool in anyio.run(build_server(ServerSettings(tmp_path)).list_tools)}
    arguments = {name for tool in tools.values() for name in tool.input_schema.get("properties", {})}
    for text in REMEDIES.values():
        assert set(re.findall(r"\b[a-z]+_[a-z]+\b", text)) <= tools.keys() | arguments, text
        assert set(re.findall(r"(\w+)=", text)) <= arguments, text


def test_no_agent_is_told_to_run_a_command() -> None:
    for text in REMEDIES.values():
        assert not re.search(r"--[a-z]|layerscope [a-z]+|=True|force", text), text


@pytest.mark.anyio
async def test_an_error_of_the_engine_names_the_tool_to_call(app: LayerscopeServer) -> None:
    async with Client(app) as client:
        prompts = await refused(client, "rank_layers", name="prompt")
        assert prompts.endswith("Next: capture_contrast(concept='honesty'), or with pairs of your own.")
        taken = await refused(client, "capture_contrast", concept="warmth", model="tiny", name="loudness")
        assert taken.endswith("Next: choose another name, or replace=true.")
        missing = await refused(client, "show_concept", name="nothing")
        assert missing.endswith("Next: list_concepts.")
