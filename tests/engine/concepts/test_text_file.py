"""Files of prompts and of pairs, told apart by what they begin with."""

from pathlib import Path

import pytest

from engine.concepts.pair_files import PairFile
from engine.concepts.prompt_file import PromptFile
from engine.concepts.text_file import open_texts
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
