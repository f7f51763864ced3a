"""What the terminal app says to do can be done: its keys, and commands that there are."""

import re
from pathlib import Path

import pytest
from textual.widgets import Input
from typer.main import get_command

from engine.cli.main import build_app
from engine.errors import Remedy
from tests.tui.screen_text import wait_for
from tui.app import LayerscopeApp
from tui.remedies import REMEDIES


def test_every_remedy_is_said() -> None:
    assert set(REMEDIES) == set(Remedy)


def test_commands_and_options_exist() -> None:
    commands = get_command(build_app()).commands  # type: ignore[attr-defined]  # a group has commands
    options = {name for command in commands.values() for parameter in command.params for name in parameter.opts}
    said = " ".join(REMEDIES.values())
    assert set(re.findall(r"--[a-z0-9-]+", said)) <= options
    assert set(re.findall(r"layerscope ([a-z]+)", said)) <= set(commands)


def test_nobody_at_the_keys_is_told_to_call_a_function() -> None:
    for text in REMEDIES.values():
        assert not re.search(r"[a-z]+_[a-z]+|=true|=True", text), text


@pytest.mark.anyio
async def test_the_form_says_which_field_to_fill_otherwise(real_store: Path) -> None:
    async with LayerscopeApp(real_store).run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, "2 captures")
        await pilot.press("n")
        await wait_for(pilot, "New capture")
        pilot.app.screen.query_one("#concept", Input).value = "honesty"
        pilot.app.screen.query_one("#name", Input).value = "tiny_loud"
        await pilot.press("enter")
        await wait_for(pilot, "another name in the field Save as")
