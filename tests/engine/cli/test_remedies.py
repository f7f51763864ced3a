"""What the command line says to do can be typed."""

import re

from typer.main import get_command

from engine.cli.main import build_app
from engine.cli.remedies import REMEDIES
from engine.errors import Remedy


def test_every_remedy_is_said() -> None:
    assert set(REMEDIES) == set(Remedy)


def test_commands_and_options_exist() -> None:
    commands = get_command(build_app()).commands  # type: ignore[attr-defined]  # a group has commands
    options = {name for command in commands.values() for parameter in command.params for name in parameter.opts}
    said = " ".join(REMEDIES.values())
    assert set(re.findall(r"--[a-z0-9-]+", said)) <= options
    assert set(re.findall(r"layerscope ([a-z]+)", said)) <= set(commands)


def test_nobody_in_a_terminal_is_told_to_call_a_tool() -> None:
    for text in REMEDIES.values():
        assert not re.search(r"[a-z]+_[a-z]+\(|=true|=True", text), text
