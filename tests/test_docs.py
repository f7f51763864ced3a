"""The code and commands of the README and the docs run and print the shown output.

`DOCS=write pytest tests/test_docs.py` replaces the output that pages show with what the commands print now.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from typer.main import get_command

import engine
from engine.cli.main import build_app
from tests.program import Program, Result, Run

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
WRITE = os.environ.get("DOCS") == "write"

_FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', flags=re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Fence:
    """A fenced block; a title is the name of the file that the reader saves it as."""

    language: str
    title: str
    text: str
    begin: int
    end: int


def fences(page: Path) -> list[Fence]:
    """The fenced blocks of a page, in order, with the span of the text inside."""
    return [Fence(m[1], m[2] or "", m[3], m.start(3), m.end(3)) for m in _FENCE.finditer(page.read_text())]


def commands(page: Path, language: str = "console") -> list[list[str]]:
    """The arguments of every `layerscope` command in blocks of one language."""
    lines = [line for fence in fences(page) if fence.language == language for line in fence.text.splitlines()]
    found = [re.search(r"(?:^| )layerscope ((?!--).*)", line) for line in lines]
    assert language != "console" or all(found), page.name
    return [shlex.split(match[1], comments=True) for match in found if match]


def slow(page: Path) -> bool:
    """Whether a page needs a capture that the fast tests do not make; those of formality they share."""
    return any(re.search("smollm2_(honesty|empathy)|--causal", " ".join(arguments)) for arguments in commands(page))


def each(pages: list[Path]) -> list[ParameterSet]:
    """One test per page, in its tier."""
    return [pytest.param(page, id=page.stem, marks=pytest.mark.slow if slow(page) else ()) for page in pages]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_exist_with_their_options(page: Path) -> None:
    """A quick check that also covers commands that need a GPU or a download."""
    known = get_command(build_app()).commands  # type: ignore[attr-defined]  # a group has commands
    for name, *arguments in [*commands(page), *commands(page, "sh")]:
        known[name].make_context(name, arguments)


@pytest.mark.parametrize("page", each([page for page in PAGES if commands(page)]))
def test_the_commands_of_a_page_run_in_order(page: Path, tmp_path: Path, captured: Callable[[str], Run]) -> None:
    """The page's files are saved first; shown output is that of the last command."""
    printed = ""
    outputs: list[tuple[Fence, str]] = []
    for before, fence in zip([None, *fences(page)], fences(page), strict=False):
        if fence.title:
            (tmp_path / fence.title).write_text(fence.text)
        if fence.language == "console":
            for line in fence.text.splitlines():
                result = run(shlex.split(line)[2:], tmp_path, captured)
                assert result.returncode == 0, f"{line}\n{result.stderr}"
                printed = result.stdout
        if fence.language == "text" and before is not None and before.language == "console":
            outputs.append((fence, printed))
    if WRITE:
        write_outputs(page, outputs)
        return
    for fence, now in outputs:
        assert_alike(fence.text, now)


def run(arguments: list[str], folder: Path, captured: Callable[[str], Run]) -> Result:
    """Run a command; captures shared by tests or assumed by the page are made once."""
    store = folder / "activations"
    match arguments:
        case ["capture", "--concept", concept] if not concept.endswith(".toml"):
            capture = captured(concept)
            capture.copy_to(store)
            return capture.result
    for concept in re.findall(r"smollm2_(\w+)", " ".join(arguments)):
        if not (store / f"smollm2_{concept}.json").exists():
            captured(concept).copy_to(store)
    return Program(folder)(*arguments)


def write_outputs(page: Path, outputs: list[tuple[Fence, str]]) -> None:
    """Write the output into the page, last block first, so that offsets stay valid."""
    text = page.read_text()
    for fence, now in reversed(outputs):
        clean = "".join(f"{line.rstrip()}\n" for line in now.splitlines())
        text = text[: fence.begin] + clean + text[fence.end :]
    page.write_text(text)


def assert_alike(shown: str, printed: str) -> None:
    """Words must match; numbers and ranks may differ slightly on another processor."""
    assert re.findall(r"[A-Za-z]+", shown) == re.findall(r"[A-Za-z]+", printed)
    for line, row in zip(rows(shown), rows(printed), strict=True):
        if line[0] == row[0]:
            for now, then in zip(row[1], line[1], strict=True):
                tolerance = {2: 0.1, 3: max(0.02, 0.02 * abs(float(then))), 4: 0.0002}[len(then.partition(".")[2])]
                assert float(now) == pytest.approx(float(then), abs=tolerance), f"layer {line[0]}"


def rows(table: str) -> Iterator[tuple[str, list[str]]]:
    """The layer of each table row, and its numbers with a decimal point."""
    header = next((line.split() for line in table.splitlines() if "layer" in line.split()), None)
    for line in table.splitlines():
        cells = line.replace("= ", "=").split()
        if header and len(cells) >= len(header) - 1 and re.fullmatch(r"\d+=?", cells[0]):
            yield cells[header.index("layer")], re.findall(r"(?<![\d.])-?\d+\.\d+", line)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for number, fence in enumerate(fences(page)):
        if fence.language == "python":
            exec(compile(fence.text, f"{page.name}, block {number}", "exec"), namespace)  # noqa: S102 - our own page
    assert not re.search(r"p = 0\.0+\b", capsys.readouterr().out), "no permutation test gives a p-value of 0"


@pytest.mark.slow
@pytest.mark.parametrize("concept", ["formality", "empathy", "honesty"])
def test_the_docs_rank_concepts_as_they_are(concept: str, captured: Callable[[str], Run]) -> None:
    assert_the_docs_rank(concept, Program(captured(concept).path.parent.parent))


@pytest.mark.slow
def test_the_docs_rank_a_concept_as_hooks_capture_it(tmp_path: Path) -> None:
    program = Program(tmp_path)
    capture = ("capture", "--concept", "formality", "--positions", "last", "--use-hooks", "--no-specificity")
    assert program(*capture).returncode == 0
    assert_the_docs_rank("formality", program)


def assert_the_docs_rank(concept: str, program: Program) -> None:
    """The named layer may be the best; its score and the raw-norm layer are right."""
    ranking = json.loads(program("rank", f"smollm2_{concept}", "--json").stdout)["layers"]
    text = (ROOT / "docs" / "ranking.md").read_text()
    (line,) = re.findall(rf"^\| {concept} \|(.*)\|$", text, flags=re.MULTILINE)
    layer, score, p_value, best, loudest, place = (cell.strip() for cell in line.split("|"))
    row = next(row for row in ranking if row["layer"] == int(layer))
    assert row["tied"]
    assert [row["d_prime"], row["low"], row["high"]] == pytest.approx(
        [float(number) for number in re.findall(r"-?[\d.]+", score)], abs=0.1
    )
    smallest = min(row["p_value"] for row in ranking)
    assert smallest < 0.001 if p_value == "<0.001" else smallest == pytest.approx(float(p_value), abs=0.05)
    assert ("not found" in best) == (smallest > 0.05)
    for line in re.findall(rf"^\| {concept} \|(.*)\|$", (ROOT / "README.md").read_text(), flags=re.MULTILINE):
        assert [f"{layer}: {score}", p_value] == [cell.strip() for cell in line.split("|")][1:3]
    by_norm = max(ranking, key=lambda row: float(row["diff_norm"]))
    assert by_norm["layer"] == int(loudest)
    assert abs(by_norm["rank"] - int(place)) <= 3


def test_links_between_pages_are_valid() -> None:
    """`make docs` checks the links of the site, anchors included."""
    for page in [*PAGES, *ROOT.glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_site_has_every_page_and_every_public_name() -> None:
    def listed(entry: object) -> list[str]:
        match entry:
            case dict():
                return [page for value in entry.values() for page in listed(value)]
            case list():
                return [page for value in entry for page in listed(value)]
        return [str(entry)]

    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    assert sorted(listed(nav)) == [page.name for page in DOCS]
    names = re.findall(r"^::: engine\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), flags=re.MULTILINE)
    assert sorted(names) == engine.__all__


def check_site(folder: Path) -> Result:
    """Output of the checker of a built site."""
    command = [sys.executable, str(ROOT / "scripts" / "check_site.py"), str(folder)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False)


def test_a_built_site_with_broken_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide" / "index.html").write_text('<h2 id="here">Here</h2><a href="..">up</a>')
    (tmp_path / "index.html").write_text('<p id="top"><a href="guide/#here">x</a> <a href="https://example.org">y</a>')
    assert check_site(tmp_path).returncode == 0
    (tmp_path / "index.html").write_text('<a href="guide/#gone">x</a> <img src="no.png"> <a href="./nowhere/">z</a>')
    result = check_site(tmp_path)
    assert result.returncode == 1
    assert [line.split(": ")[1] for line in result.stdout.splitlines()[:-1]] == ["guide/#gone", "no.png", "./nowhere/"]


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    """Build a copy with its own output and cache; a missing name fails the build."""
    program = Path(sys.executable).with_name("zensical")
    for name in ("docs", "engine", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    subprocess.run([program, "build", "--strict"], cwd=tmp_path, check=True, capture_output=True)
    site = check_site(tmp_path / "build" / "site")
    assert site.returncode == 0, site.stdout
    with (tmp_path / "docs" / "api.md").open("a") as page:
        page.write("\n::: engine.no_such_function\n")
    broken = subprocess.run([program, "build", "--strict"], cwd=tmp_path, check=False, capture_output=True)
    assert broken.returncode != 0
