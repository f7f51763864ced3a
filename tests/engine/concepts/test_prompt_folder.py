"""Files of prompts by name: of one folder, and of no other."""

from pathlib import Path

import pytest

from engine.concepts.prompt_folder import find_prompts, prompt_files
from engine.errors import RequestError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of prompts, one thing that is none, and a secret beside the folder."""
    made = tmp_path / "prompts"
    made.mkdir()
    (made / "questions.txt").write_text("Is it?\nIs it not?\n")
    (made / "more.jsonl").write_text('{"prompt": "Why?"}\n')
    (made / "notes.md").write_text("notes")
    (tmp_path / "secret.txt").write_text("secret\n")
    return made


def test_files_go_by_their_names(folder: Path) -> None:
    assert prompt_files(folder) == ["more.jsonl", "questions.txt"]
    assert list(find_prompts("questions.txt", folder).texts()) == ["Is it?", "Is it not?"]


@pytest.mark.parametrize(
    "name", ["../secret.txt", "/etc/passwd", "", ".", "..", "questions", "notes.md", "x\0.txt", "./questions.txt"]
)
def test_nothing_else_is_read(folder: Path, name: str) -> None:
    with pytest.raises(RequestError, match=r"(?s)no file of prompts called.*\.jsonl") as error:
        find_prompts(name, folder)
    assert "secret\n" not in str(error.value)


def test_a_near_miss_names_what_was_meant(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"did you mean 'questions\.txt'"):
        find_prompts("question.txt", folder)


def test_links_lead_nowhere(folder: Path, tmp_path: Path) -> None:
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    assert "link.txt" not in prompt_files(folder)
    with pytest.raises(RequestError, match="no file of prompts"):
        find_prompts("link.txt", folder)
    (tmp_path / "other").symlink_to(folder)
    assert prompt_files(tmp_path / "other") == []


def test_a_folder_that_is_not_there_holds_none(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there are none yet"):
        find_prompts("questions.txt", tmp_path / "none")
