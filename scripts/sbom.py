"""Write a software bill of materials: what an installed layerscope consists of, as CycloneDX JSON.

Usage: python scripts/sbom.py FILE     # in the environment that is described; `make release` runs it in a clean one

The same environment gives the same file.
"""

from __future__ import annotations

import json
import sys
import uuid
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NAME = "layerscope"


def required(of: Distribution, extras: frozenset[str] = frozenset()) -> dict[str, frozenset[str]]:
    """The packages that a distribution needs in this environment, with the extras that it asks for.

    Args:
        of: The distribution.
        extras: Its own extras that were asked for.
    """
    found: dict[str, frozenset[str]] = {}
    for one in map(Requirement, of.requires or []):
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            name = canonicalize_name(one.name)
            found[name] = found.get(name, frozenset()) | one.extras
    return found


def closure(name: str) -> dict[str, tuple[Distribution, list[str]]]:
    """Every package that one needs, directly or not, with the names that each needs in turn.

    Args:
        name: The package to begin with. A requirement that is not installed is left out.
    """
    found: dict[str, tuple[Distribution, list[str]]] = {}
    asked: dict[str, frozenset[str]] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(canonicalize_name(name), frozenset())]
    while waiting:
        one, extras = waiting.pop()
        if one in found and extras <= asked[one]:
            continue
        try:
            itself = distribution(one)
        except PackageNotFoundError:
            continue
        asked[one] = asked.get(one, frozenset()) | extras
        needs = required(itself, asked[one])
        found[one] = itself, sorted(needs)
        waiting += needs.items()
    return dict(sorted(found.items()))


def component(name: str, itself: Distribution) -> dict[str, Any]:
    """The entry of one package."""
    purl = f"pkg:pypi/{name}@{itself.version.replace('+', '%2B')}"
    entry: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "version": itself.version, "purl": purl}
    if license_expression := itself.metadata.get("License-Expression"):
        entry["licenses"] = [{"expression": license_expression}]
    return entry


def bill(name: str) -> dict[str, Any]:
    """The bill of materials of an installed package.

    Args:
        name: The package.
    """
    packages = closure(name)
    entries = {one: component(one, itself) for one, (itself, _) in packages.items()}
    main = entries.pop(canonicalize_name(name))
    references = {one: entry["bom-ref"] for one, entry in entries.items()} | {canonicalize_name(name): main["bom-ref"]}
    depends = [
        {"ref": references[one], "dependsOn": [references[need] for need in needs if need in references]}
        for one, (_, needs) in packages.items()
    ]
    contents = {"components": list(entries.values()), "dependencies": depends}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, main["purl"] + json.dumps(contents)).urn,
        "version": 1,
        "metadata": {"component": main | {"type": "application"}},
        **contents,
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(bill(NAME), indent=2) + "\n", encoding="utf-8")
