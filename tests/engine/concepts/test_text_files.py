"""Files of prompts and of pairs, told apart by what they begin with."""

from pathlib import Path

import pytest

from engine.concepts.pair_files import PairFile
from engine.concepts.text_files import PromptFile, find_texts, open_texts, prompt_files
from engine.errors import RequestError


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.txt", "positive,negative\n", PromptFile),
        ("a.jsonl", '\n{"id": 1, "prompt": "hello"}\n', PromptFile),
        ("A.JSONL", '{"positive": "one", "negative": "two"}\n', PairFile),
        ("a.csv", "id,prompt\n1,hello\n", PromptFile),
        ("a.csv", "\ufeffpositive,negative,topic\none,two,three\n", PairFile),
    ],
)
def test_what_the_first_line_holds_decides(tmp_path: Path, name: str, content: str, kind: type) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    found = open_texts(path)
    assert isinstance(found, kind)
    assert found == kind(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": "hello"}\n', "neither prompts nor pairs: its first line has text"),
        ("a.csv", "text,label\nhello,1\n", "neither prompts nor pairs: its first line has label, text"),
        ("a.jsonl", '{"prompt": "a", "positive": "b", "negative": "c"}\n', "both prompts and pairs"),
        ("a.jsonl", "", "has no fields"),
        ("a.csv", "", "has no fields"),
    ],
)
def test_neither_and_both_say_what_either_would_look_like(tmp_path: Path, name: str, content: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(RequestError) as error:
        open_texts(path)
    assert said in str(error.value)
    assert '{"prompt": "…"}' in str(error.value)
    assert '{"positive": "…", "negative": "…"}' in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.md", "hello", "says no format"),
        ("a.jsonl", "hello", "line 1 is not JSON"),
        ("a.jsonl", "[1]", "line 1 is not an object"),
        ("a.jsonl", '{"positive": "only"}', "negative must be a text"),
        ("a.csv", "prompt\n", "holds no prompts"),
        ("a.txt", "\n \n", "holds no prompts"),
    ],
)
def test_what_is_wrong_is_said_as_ever(tmp_path: Path, name: str, content: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(RequestError, match=said):
        open_texts(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        open_texts(tmp_path / "none.jsonl")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of prompts, one of pairs, things that are none, and a secret beside the folder."""
    made = tmp_path / "prompts"
    made.mkdir()
    (made / "questions.txt").write_text("Is it?\nIs it not?\n")
    (made / "more.jsonl").write_text('{"prompt": "Why?"}\n')
    (made / "pairs.csv").write_text("positive,negative\nYes,No\n")
    (made / "notes.md").write_text("notes")
    (made / "folder.txt").mkdir()
    (tmp_path / "secret.txt").write_text("secret\n")
    return made


def test_files_go_by_their_names(folder: Path) -> None:
    assert prompt_files(folder) == ["more.jsonl", "pairs.csv", "questions.txt"]
    prompts, pairs = find_texts("questions.txt", folder), find_texts("pairs.csv", folder)
    assert isinstance(prompts, PromptFile)
    assert list(prompts.texts()) == ["Is it?", "Is it not?"]
    assert isinstance(pairs, PairFile)
    assert [(pair.positive, pair.negative) for pair in pairs.pairs()] == [("Yes", "No")]


def test_a_data_set_is_one_of_them(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"prompt": ["Why?", "How?"]}).save_to_disk(folder / "asked")
    assert "asked" in prompt_files(folder)
    found = find_texts("asked", folder)
    assert isinstance(found, PromptFile)
    assert list(found.texts()) == ["Why?", "How?"]


@pytest.mark.parametrize(
    "name", ["../secret.txt", "/etc/passwd", "", ".", "..", "questions", "notes.md", "x\0.txt", "./questions.txt"]
)
def test_nothing_else_is_read(folder: Path, name: str) -> None:
    with pytest.raises(RequestError, match=r"(?s)no file called.*\.jsonl") as error:
        find_texts(name, folder)
    assert "secret\n" not in str(error.value)


def test_a_near_miss_names_what_was_meant(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"did you mean 'questions\.txt'"):
        find_texts("question.txt", folder)


def test_links_lead_nowhere(folder: Path, tmp_path: Path) -> None:
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    assert "link.txt" not in prompt_files(folder)
    with pytest.raises(RequestError, match="no file called"):
        find_texts("link.txt", folder)
    (tmp_path / "other").symlink_to(folder)
    assert prompt_files(tmp_path / "other") == []


def test_a_folder_that_is_not_there_holds_none(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there are none yet"):
        find_texts("questions.txt", tmp_path / "none")
