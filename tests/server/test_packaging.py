"""The files for registries and desktop clients match the program and their schemas.

The required fields are those of `2025-12-11/server.schema.json` of the MCP registry and of version 0.3 of the MCPB
manifest, which `make check-mcp` also validates with the bundle's own program.
"""

import json
import re
from importlib.metadata import version
from pathlib import Path

from typer.main import get_command

from engine.cli.main import build_app

FOLDER = Path(__file__).parents[2] / "packaging"


def test_both_files_have_this_version_and_valid_options() -> None:
    registry = json.loads((FOLDER / "server.json").read_text())
    bundle = json.loads((FOLDER / "manifest.json").read_text())
    (package,) = registry["packages"]
    assert {registry["version"], package["version"], bundle["version"]} == {version("layerscope")}
    command, *options = (argument.get("value") or argument["name"] for argument in package["packageArguments"])
    assert bundle["server"]["mcp_config"]["args"][:2] == [command, *options] == ["serve", "--store"]
    serve = get_command(build_app()).commands[command]  # type: ignore[attr-defined]  # a group has commands
    assert {name for parameter in serve.params for name in parameter.opts} >= set(options)
    assert (FOLDER.parent / bundle["server"]["entry_point"]).is_file()


def test_the_registry_file_has_the_required_fields() -> None:
    registry = json.loads((FOLDER / "server.json").read_text())
    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", registry["name"])
    assert 3 <= len(registry["name"]) <= 200
    assert 1 <= len(registry["title"]) <= 100
    assert 1 <= len(registry["description"]) <= 100
    assert registry["$schema"].endswith("/2025-12-11/server.schema.json")
    for package in registry["packages"]:
        assert (package["registryType"], package["transport"]) == ("pypi", {"type": "stdio"})
        assert package["version"] not in {"", "latest"}
        assert package["identifier"] == "layerscope"
        for argument in package["packageArguments"]:
            assert argument["type"] in {"positional", "named"}
            assert "value" in argument if argument["type"] == "positional" else argument["name"].startswith("--")
            assert argument.get("format", "string") in {"string", "number", "boolean", "filepath"}
            assert isinstance(argument.get("default", ""), str)


def test_the_readme_has_the_registrys_ownership_marker() -> None:
    name = json.loads((FOLDER / "server.json").read_text())["name"]
    assert f"mcp-name: {name} -->" in (FOLDER.parent / "README.md").read_text()


def test_the_bundle_manifest_has_the_required_fields() -> None:
    bundle = json.loads((FOLDER / "manifest.json").read_text())
    assert bundle.keys() >= {"manifest_version", "name", "version", "description", "author", "server"}
    assert bundle["author"]["name"]
    assert bundle["server"].keys() >= {"type", "entry_point", "mcp_config"}
    wanted = set(re.findall(r"\$\{user_config\.(\w+)\}", json.dumps(bundle["server"])))
    assert wanted == bundle["user_config"].keys()
    for entry in bundle["user_config"].values():
        assert entry.keys() >= {"type", "title", "description"}
