"""A release can be tagged: version, changelog, pins and workflow agree."""

import json
import re
import subprocess
import sys
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from engine.version import VERSION

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements() -> list[Requirement]:
    """All requirements of the package and its extras, without the package itself."""
    texts = [*PROJECT["dependencies"], *(one for extra in PROJECT["optional-dependencies"].values() for one in extra)]
    return [one for one in map(Requirement, texts) if one.name != PROJECT["name"]]


def test_the_changelog_begins_with_this_version_or_with_what_comes_after_it() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    released = headings[1] if headings[0] == "Unreleased" else headings[0]
    version, _, day = released.partition(" - ")
    assert version == VERSION
    date.fromisoformat(day)


def test_every_file_that_names_the_version_names_this_one() -> None:
    registry = json.loads((ROOT / "packaging" / "server.json").read_text())
    bundle = json.loads((ROOT / "packaging" / "manifest.json").read_text())
    assert {registry["version"], registry["packages"][0]["version"], bundle["version"]} == {VERSION}


def test_the_pins_are_within_the_stated_ranges() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    outside = [str(one) for one in requirements() if pins.get(canonicalize_name(one.name), "") not in one.specifier]
    assert outside == []


def test_every_pin_but_that_of_torch_has_hashes() -> None:
    """After a change of constraints.txt: python scripts/hashes.py."""
    pins = set((ROOT / "constraints.txt").read_text().splitlines()[1:])
    entries = (ROOT / "requirements.txt").read_text().replace(" \\\n", "").splitlines()
    hashed = {entry.split()[0]: entry.split()[1:] for entry in entries if not entry.startswith("#")}
    assert hashed.keys() == {pin for pin in pins if not pin.startswith("torch==")}
    for digests in hashed.values():
        assert digests
        assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", digest) for digest in digests)


def test_a_release_lists_what_it_consists_of(tmp_path: Path) -> None:
    path = tmp_path / "layerscope.cdx.json"
    subprocess.run([sys.executable, "scripts/sbom.py", str(path)], cwd=ROOT, check=True)
    bill = json.loads(path.read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "layerscope")
    named = {one["name"] for one in bill["components"]}
    assert named >= {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert "pytest" not in named
    references = {one["bom-ref"] for one in [*bill["components"], bill["metadata"]["component"]]}
    assert {one["ref"] for one in bill["dependencies"]} == references
    assert all(set(one["dependsOn"]) <= references for one in bill["dependencies"])


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    command = [sys.executable, "scripts/lowest.py", "--except", "torch"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, encoding="utf-8").stdout.splitlines()
    lowest = dict(line.split("==") for line in printed)
    assert lowest.keys() >= {Requirement(text).name for text in PROJECT["dependencies"]} - {"torch"}
    for one in requirements():
        if one.name in lowest:
            assert f">={lowest[one.name]}" in str(one.specifier).split(",")


def test_the_workflow_runs_every_version_of_python_that_is_promised() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    promised = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert matrix["python"] == promised
    assert PROJECT["requires-python"] == f">={promised[0]}"
    assert {system.split("-")[0] for system in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert {"lowest", "newest"} <= {row["versions"] for row in matrix["include"] if row["python"] == promised[0]}
