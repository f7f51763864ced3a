"""The README and the docs stay true: their code runs, their commands succeed, and what they show is what is printed."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of a console block with this environment's programs."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        shlex.split(command), cwd=folder, capture_output=True, text=True, env=os.environ | {"PATH": path}, check=False
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)  # noqa: S102 - it is our own page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_succeed(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "console"):
        for line in block.splitlines():
            result = run(line.removeprefix("$ "), tmp_path)
            assert result.returncode == 0, f"{line}\n{result.stderr}"


def test_the_readme_shows_what_the_demo_prints(tmp_path: Path) -> None:
    """Numbers may differ in the last digits on another processor: layers, shape and first ranks may not."""
    result = run("layerscope capture --concept honesty --positions last", tmp_path)
    (shown,) = blocks(ROOT / "README.md", "text")
    printed = result.stdout.splitlines()
    assert [line.split()[0] for line in printed if line.strip()] == [line.split()[0] for line in shown.splitlines()]
    for line, expected in zip(printed[3:33], shown.splitlines()[3:33], strict=True):
        numbers, wanted = ([float(cell) for cell in row.split()[:6]] for row in (line, expected))
        layer, d_prime, auroc, diff_norm, relative, cosine = wanted
        assert numbers[0] == layer
        assert numbers[1] == pytest.approx(d_prime, abs=0.05)
        assert numbers[2] == pytest.approx(auroc, abs=0.02)
        assert numbers[3] == pytest.approx(diff_norm, rel=0.02, abs=1e-3)
        assert numbers[4] == pytest.approx(relative, rel=0.02, abs=1e-4)
        assert 1 - numbers[5] == pytest.approx(1 - cosine, rel=0.05, abs=1e-5)


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
