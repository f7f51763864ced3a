"""The files that registries and desktop clients read say what the program is and does."""

import json
from importlib.metadata import version
from pathlib import Path

from typer.main import get_command

from engine.cli.main import app

FOLDER = Path(__file__).parents[2] / "packaging"


def test_both_files_are_of_this_version_and_start_the_server_with_options_that_it_has() -> None:
    registry = json.loads((FOLDER / "server.json").read_text())
    bundle = json.loads((FOLDER / "manifest.json").read_text())
    (package,) = registry["packages"]
    assert {registry["version"], package["version"], bundle["version"]} == {version("layerscope")}
    command, *options = (argument.get("value") or argument["name"] for argument in package["packageArguments"])
    assert bundle["server"]["mcp_config"]["args"][:2] == [command, *options] == ["serve", "--store"]
    serve = get_command(app).commands[command]  # type: ignore[attr-defined]  # a group has commands
    assert {name for parameter in serve.params for name in parameter.opts} >= set(options)
    assert (FOLDER.parent / bundle["server"]["entry_point"]).is_file()
