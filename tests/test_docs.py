"""The README and the docs stay true: their code runs, their commands succeed, and what they show is what is printed."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.program import Program, Result, Run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def run(line: str, folder: Path, captured: Callable[[str], Run]) -> Result:
    """Run a line of a console block; a capture that tests share is made once."""
    program, *arguments = shlex.split(line.removeprefix("$ "))
    assert program == "layerscope"
    match arguments:
        case ["capture", "--concept", concept]:
            capture = captured(concept)
            capture.copy_to(folder / "activations")
            return capture.result
    return Program(folder)(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)  # noqa: S102 - it is our own page


def console() -> list[ParameterSet]:
    """The console blocks of each page; those that need the long capture of empathy are for the slow tier."""
    numbered = [(page, number, block) for page in PAGES for number, block in enumerate(blocks(page, "console"))]
    return [
        pytest.param(block, id=f"{page.name}-{number}", marks=pytest.mark.slow if "--concept empathy" in block else ())
        for page, number, block in numbered
    ]


@pytest.mark.parametrize("block", console())
def test_the_commands_of_a_page_succeed(block: str, tmp_path: Path, captured: Callable[[str], Run]) -> None:
    if "smollm2_honesty" in block:  # as `make demo` leaves it, with which the page begins
        captured("honesty").copy_to(tmp_path / "activations")
    for line in block.splitlines():
        result = run(line, tmp_path, captured)
        assert result.returncode == 0, f"{line}\n{result.stderr}"


def test_the_readme_shows_what_the_demo_prints(captured: Callable[[str], Run]) -> None:
    """Numbers may differ in the last digits on another processor, and places with them: layers and scores may not."""
    (shown,) = blocks(ROOT / "README.md", "text")
    printed = captured("honesty").result.stdout.splitlines()
    assert printed[:2] == shown.splitlines()[:2]
    assert printed[2].split() == shown.splitlines()[2].split()
    for line, expected in zip(printed[3:33], shown.splitlines()[3:33], strict=True):
        cells, wanted = line.split(), expected.split()
        assert cells[0] == wanted[0]
        for column, tolerance in ((3, 0.05), (4, 0.1), (5, 0.1), (7, 0.02), (9, 0.0002)):  # d', interval, AUROC, cosine
            assert float(cells[column]) == pytest.approx(float(wanted[column]), abs=tolerance)
        assert float(cells[8]) == pytest.approx(float(wanted[8]), rel=0.02, abs=2e-3)  # raw norm
    assert [line.split()[0] for line in printed[33:36]] == [line.split()[0] for line in shown.splitlines()[33:36]]


@pytest.mark.slow
def test_the_readme_ranks_empathy_as_it_is(captured: Callable[[str], Run]) -> None:
    assert_the_readme_ranks("empathy", Program(captured("empathy").path.parent.parent))


@pytest.mark.slow
@pytest.mark.parametrize("concept", ["formality", "empathy"])
def test_the_readme_ranks_other_concepts_as_hooks_capture_them(concept: str, tmp_path: Path) -> None:
    program = Program(tmp_path)
    assert program("capture", "--concept", concept, "--positions", "last", "--use-hooks").returncode == 0
    assert_the_readme_ranks(concept, program)


def assert_the_readme_ranks(concept: str, program: Program) -> None:
    """The layer that is named is one that may be the best, and its score and where the raw norm leads are right."""
    ranking = json.loads(program("rank", f"smollm2_{concept}", "--json").stdout)["layers"]
    (line,) = re.findall(rf"^\| {concept} \|(.*)\|$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    layer, score, _, loudest, place = (cell.strip() for cell in line.split("|"))
    row = next(row for row in ranking if row["layer"] == int(layer))
    assert row["tied"]
    assert [row["d_prime"], row["low"], row["high"]] == pytest.approx(
        [float(number) for number in re.findall(r"[\d.]+", score)], abs=0.1
    )
    by_norm = max(ranking, key=lambda row: float(row["diff_norm"]))
    assert by_norm["layer"] == int(loudest)
    assert abs(by_norm["rank"] - int(place)) <= 3


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
