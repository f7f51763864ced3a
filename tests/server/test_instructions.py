"""What a server says of itself names the tools that it has."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from server.instructions import instructions_for
from server.settings import ServerSettings
from server.tools import TOOLS, missing_tool, offered_tools

NAMES = [spec.name for spec in TOOLS]


def named(text: str) -> set[str]:
    return set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", text)) & set(NAMES)


def test_with_every_tool_nothing_is_missing(tmp_path: Path) -> None:
    said = instructions_for(offered_tools(ServerSettings(tmp_path)))
    assert "does not offer" not in said
    assert {"list_concepts", "capture_contrast", "rank_layers", "plot_capture", "wait_for_job"} == named(said)


@pytest.mark.parametrize("changes", [{"read_only": True}, {"tools": ("rank_layers",)}, {"tools": ("cancel_job",)}])
def test_the_usual_way_leads_over_tools_that_are_there_and_the_others_are_named(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    offered = offered_tools(replace(ServerSettings(tmp_path), **changes))  # type: ignore[arg-type]
    names = {spec.name for spec in offered}
    lines = instructions_for(offered).split("\n")
    assert named(lines[1]) <= names
    assert named(lines[-1]) == set(NAMES) - names


def test_a_tool_that_was_left_out_is_told_from_one_that_never_was() -> None:
    assert "started without delete_capture" in missing_tool("delete_capture", ["rank_layers"])
    assert "did you mean 'rank_layers'?" in missing_tool("rank_layer", ["rank_layers"])
