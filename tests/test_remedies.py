"""Every remedy names actions that its interface offers."""

import re
from pathlib import Path

import anyio
import pytest
from typer.main import get_command

from engine.cli.main import build_app
from engine.remedies import Face, Remedy
from server.app import build_server
from server.settings import ServerSettings


def words(face: Face) -> list[str]:
    return [remedy.words(face) for remedy in Remedy]


@pytest.mark.parametrize("face", ["command_line", "app"])
def test_commands_and_options_exist(face: Face) -> None:
    commands = get_command(build_app()).commands  # type: ignore[attr-defined]  # a group has commands
    options = {
        name
        for command in commands.values()
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    said = " ".join(words(face))
    assert set(re.findall(r"--[a-z0-9-]+", said)) <= options
    assert set(re.findall(r"layerscope ([a-z]+)", said)) <= set(commands)


@pytest.mark.parametrize("face", ["command_line", "app"])
def test_user_remedies_name_no_functions(face: Face) -> None:
    for text in words(face):
        assert not re.search(r"[a-z]+_[a-z]+\(|=true|=True", text), text


def test_tools_and_arguments_exist(tmp_path: Path) -> None:
    tools = {tool.name: tool for tool in anyio.run(build_server(ServerSettings(tmp_path)).list_tools)}
    arguments = {name for tool in tools.values() for name in tool.input_schema.get("properties", {})}
    for text in words("server"):
        assert set(re.findall(r"\b[a-z]+_[a-z]+\b", text)) <= tools.keys() | arguments, text
        assert set(re.findall(r"(\w+)=", text)) <= arguments, text


def test_agent_remedies_name_no_commands() -> None:
    for text in words("server"):
        assert not re.search(r"--[a-z]|layerscope [a-z]+|=True|force", text), text
