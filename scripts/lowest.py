"""Print the lowest versions that pyproject.toml allows, as constraints for pip.

Usage: python scripts/lowest.py [--except NAME] > build/lowest.txt     # or: make test-lowest

Covers the dependencies and the extras that tests need; pip chooses their own dependencies.
"""

import argparse
import re
import tomllib
from pathlib import Path

EXTRAS = ("datasets", "peft", "test")


def lowest(project: dict[str, object]) -> list[str]:
    """One `name==version` for each requirement that has a lower bound.

    Args:
        project: The table `[project]` of a pyproject.toml.
    """
    extras: dict[str, list[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    requirements: list[str] = [*project["dependencies"], *(one for extra in EXTRAS for one in extras[extra])]  # type: ignore[misc]
    bounds = (re.match(r"([\w.-]+)>=([\w.]+)", requirement) for requirement in requirements)
    return [f"{bound[1]}=={bound[2]}" for bound in bounds if bound]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--except", dest="excluded", help="a package to skip")
    excluded = parser.parse_args().excluded
    for pin in lowest(tomllib.loads(Path("pyproject.toml").read_text())["project"]):
        if not pin.startswith(f"{excluded}=="):
            print(pin)
