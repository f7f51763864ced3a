"""`~` stands for the home folder wherever a path is taken."""

from pathlib import Path
from typing import Any

import pytest

import engine
from engine.concepts.catalog import load_concept
from engine.concepts.pair_files import open_pairs
from engine.concepts.prompt_file import open_prompts
from engine.concepts.text_file import open_texts
from engine.errors import RequestError
from engine.models.registry import find_source
from engine.paths import user_path
from engine.store.names import locate
from server.http import read_token
from tests.engine.cli.conftest import concept_text


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_files_and_folders_are_found_at_home(home: Path) -> None:
    (home / "prompts.txt").write_text("w5\n")
    (home / "pairs.csv").write_text("positive,negative\nw5,w6\n")
    (home / "token").write_text("0123456789abcdef-of-tests")
    (home / "loudness.toml").write_text(concept_text("loudness"))
    (home / "model").mkdir()
    (home / "model" / "config.json").write_text("{}")
    (home / "store").mkdir()
    assert open_prompts("~/prompts.txt").path == home / "prompts.txt"
    assert open_pairs(Path("~/pairs.csv")).path == open_texts("~/pairs.csv").path == home / "pairs.csv"
    assert read_token(Path("~/token")) == "0123456789abcdef-of-tests"
    assert load_concept("~/loudness.toml").name == "loudness"
    assert find_source("~/model") == find_source(Path("~/model")) == find_source(home / "model")
    assert engine.list_captures("~/store") == []
    assert locate("~/store/mine").store == locate("mine", "~/store").store == home / "store"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("~nobody-here/x", "home folder"),
        ("a\0b", "null"),
        (b"x", "a value of the type bytes is no path"),
        (["x"], "the type list is no path.*one file or folder"),
        (None, "the type NoneType is no path"),
    ],
)
def test_what_cannot_be_a_path_is_refused(given: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        user_path(given)
