"""`layerscope concepts`: list, show and check."""

import json
from pathlib import Path

import pytest

from engine.concepts.catalog import list_concepts, load_concept, save_concept
from engine.stats.concept_check import check_concept
from tests.engine.cli.conftest import assert_failed, widest
from tests.engine.stats.test_concept_check import concept_of, keyword
from tests.program import Program


@pytest.fixture
def suspicious(tmp_path: Path) -> Path:
    return save_concept(concept_of(12, 6, 20, edit=keyword), tmp_path)


def test_alone_it_lists_the_concepts(layerscope: Program) -> None:
    result = layerscope("concepts")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == layerscope("capture", "--list-concepts").stdout
    named = [concept["name"] for concept in json.loads(layerscope("concepts", "--json").stdout)]
    assert named == [concept.name for concept in list_concepts()]


def test_show_prints_a_file_that_loads_as_the_same_concept(layerscope: Program, tmp_path: Path) -> None:
    (tmp_path / "copy.toml").write_text(layerscope("concepts", "show", "honesty").stdout)
    assert load_concept(tmp_path / "copy.toml") == load_concept("honesty")
    shown = json.loads(layerscope("concepts", "show", "honesty", "--json").stdout)
    assert shown["topics"] == list(load_concept("honesty").topics)


def test_check_prints_baselines_advice_and_warnings(layerscope: Program, suspicious: Path) -> None:
    result = layerscope("concepts", "check", suspicious.name)
    assert (result.returncode, result.stderr) == (0, "")
    assert widest(result.stdout) <= 80
    shown = " ".join(result.stdout.split())
    assert "made-up: 288 pairs from 12 personas, 6 templates and 20 topics" in shown
    assert "can reach: persona <0.001, template 0.031, topic <0.001, crossed <0.001." in shown
    assert "Words of several personas of one class (positive/negative): 'truly' 9/0." in shown
    assert "add personas: these pairs have 12, a built-in concept 24" in shown
    assert "Not checked: valence" in shown
    assert "warning: all words alone puts" in shown
    rows = [line.split()[-3:] for line in result.stdout.splitlines() if line.startswith("all words")]
    found = {row["what"]: row for row in check_concept(load_concept(suspicious), max_samples=72)["confounds"]["checks"]}
    assert rows[0][:2] == [f"{found['all words']['within_pairs']:.0%}", f"{found['all words']['auroc']:.2f}"]


def test_check_as_json_is_what_the_engine_returns(layerscope: Program, suspicious: Path) -> None:
    result = layerscope("concepts", "check", suspicious.name, "--json", "--max-samples", "0", "--seed", "3")
    assert json.loads(result.stdout) == check_concept(suspicious, max_samples=None, seed=3)


def test_an_invalid_concept_ends_with_2(layerscope: Program, tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("name = ")
    result = layerscope("concepts", "check", "broken.toml")
    assert_failed(result, 2)
    assert "broken.toml is not valid TOML" in result.stderr
    (tmp_path / "broken.toml").write_text("caution = 1")
    advice = layerscope("concepts", "check", "broken.toml").stderr
    assert "Next: compare with the file that `layerscope concepts show honesty` prints." in advice
    missing = layerscope("concepts", "check", "honest")
    assert_failed(missing, 2)
    assert "there is no concept called 'honest'" in missing.stderr


def test_control_characters_in_a_concept_do_not_reach_the_terminal(layerscope: Program, tmp_path: Path) -> None:
    def planted(number: int, one: str, other: str) -> tuple[str, str]:
        return keyword(number, f"{one} \x1b[31mred\x1b[0m\x07", other)

    path = save_concept(concept_of(12, 6, 20, edit=planted), tmp_path)
    for arguments in (("check", path.name), ("check", path.name, "--json"), ("show", path.name)):
        result = layerscope("concepts", *arguments)
        assert result.returncode == 0
        assert "\x1b" not in result.stdout + result.stderr
        assert "\x07" not in result.stdout + result.stderr
