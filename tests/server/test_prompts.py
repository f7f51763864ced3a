"""Prompts: they exist, take their arguments, and name only tools that there are."""

import re

import pytest
from mcp import Client
from mcp.types import TextContent

from server.app import LayerscopeServer
from server.tools import TOOLS
from tests.server.conftest import ERAS

pytestmark = pytest.mark.anyio

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
