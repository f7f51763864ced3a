"""Write requirements.txt: the pins of constraints.txt with the SHA-256 of every file that an index has of them.

Usage: .venv/bin/python scripts/hashes.py     # after each change of constraints.txt

torch is left out: its builds for CPUs and GPUs come from several indexes. The hashes are those that the index states;
an honest mirror has the same files. INDEX names another index than PyPI.
"""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.request
from pathlib import Path

from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)

ROOT = Path(__file__).parents[1]
INDEX = os.environ.get("INDEX", "https://pypi.org/simple")
APART = {"torch"}
HEAD = """\
# Written by scripts/hashes.py from constraints.txt; do not edit. `make install-hashed` installs it.
# Every file must match one of its hashes. torch comes apart: its builds differ from index to index.
"""


def pins(constraints: str) -> dict[str, str]:
    """Name to version for every pin but those that come apart.

    Args:
        constraints: The text of constraints.txt.
    """
    found = dict(re.findall(r"^([\w.-]+)==(\S+)$", constraints, flags=re.MULTILINE))
    return {name: version for name, version in found.items() if canonicalize_name(name) not in APART}


def hashes(files: list[dict[str, object]], version: str) -> list[str]:
    """The SHA-256 of the wheels of one version; of its source if there are no wheels.

    Args:
        files: The files of a project, as the index's JSON lists them.
        version: The pinned version.
    """
    wheels, sources = [], []
    for file in files:
        name, digest = str(file["filename"]), str(file["hashes"]["sha256"])  # type: ignore[index]
        try:
            if name.endswith(".whl"):
                wheels += [digest] * (str(parse_wheel_filename(name)[1]) == version)
            else:
                sources += [digest] * (str(parse_sdist_filename(name)[1]) == version)
        except (InvalidWheelFilename, InvalidSdistFilename):
            continue  # an old kind of file, which pip does not install
    return sorted(wheels or sources)


def files_of(name: str) -> list[dict[str, object]]:
    """The files that the index has of a project."""
    address = f"{INDEX.rstrip('/')}/{canonicalize_name(name)}/"
    request = urllib.request.Request(address, headers={"Accept": "application/vnd.pypi.simple.v1+json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - the address is an index's
        found: list[dict[str, object]] = json.load(answer)["files"]
    return found


def main() -> int:
    """0 if every pin has a hash."""
    lines = [HEAD]
    for name, version in pins((ROOT / "constraints.txt").read_text()).items():
        found = hashes(files_of(name), version)
        if not found:
            sys.exit(f"the index has no file of {name} {version}")
        lines.append(" \\\n    ".join([f"{name}=={version}", *(f"--hash=sha256:{digest}" for digest in found)]) + "\n")
    (ROOT / "requirements.txt").write_text("".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
