"""Files of prompts and of pairs are distinguished by their first line."""

import os
from pathlib import Path

import pytest

from engine.concepts.pair_files import PairFile, open_pairs
from engine.concepts.text_files import PromptFile, find_texts, open_prompts, open_texts, prompt_files
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
def test_the_first_line_decides(tmp_path: Path, name: str, content: str, kind: type) -> None:
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
def test_the_error_for_neither_or_both_shows_both_formats(tmp_path: Path, name: str, content: str, said: str) -> None:
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
        ("a.md", "hello", "is not a supported file type"),
        ("a.jsonl", "hello", "line 1 is not valid JSON"),
        ("a.jsonl", "[1]", "line 1 is not a JSON object"),
        ("a.jsonl", '{"prompt": "a", "prompt": "b"}', "line 1 is not valid JSON: the key 'prompt' appears twice"),
        ("a.csv", "prompt,prompt\na,b\n", "has two columns 'prompt'"),
        ("a.jsonl", '{"positive": "only"}', "negative is missing"),
        ("a.jsonl", '{"prompt": " "}', "line 1: the prompt is only white space: ' '. Expected: a text that is more"),
        ("a.csv", 'prompt,more\n"",1\n', "line 2: the prompt is empty"),
        ("a.csv", "prompt\n", "contains no prompts"),
        ("a.csv", "prompt\nHello, you\n", "line 2 has more cells than the header has columns.*with commas in quotes"),
        (
            "a.csv",
            '"prompt,id\nhello,1\n',
            "line 1 is not valid CSV: unexpected end of data.*a text in quotes that end",
        ),
        ("a.csv", 'prompt,id\n"hello,1\nyou,2\n', "line 2 is not valid CSV: unexpected end of data"),
        ("a.txt", "\n \n", "contains no prompts: all of its lines are blank"),
        ("a.txt", "", r"contains no prompts\. Expected: at least one"),
        ("a.jsonl", '{"prompt": "\\n"}', r"line 1: the prompt is only white space: '\\n'"),
    ],
)
def test_an_invalid_file_is_refused(tmp_path: Path, name: str, content: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(RequestError, match=said):
        open_texts(path)


def test_a_later_line_without_a_prompt_or_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a"}\n{"promt": "b"}\n')
    with pytest.raises(RequestError, match=r"a\.jsonl, line 2: prompt is missing\. Expected: a prompt in each line"):
        list(open_prompts(path).texts())
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\n" * 5000 + b"caf\xe9\n" + b"fine\n" * 5000)  # beyond the first block that is read
    with pytest.raises(RequestError, match=r"a\.txt, line 5001 is not UTF-8"):
        list(open_prompts(path).texts())


@pytest.mark.parametrize(
    ("name", "text", "field"),
    [
        ("a.jsonl", '{"prompt": "a", "responce": "b"}', "responce"),
        ("a.jsonl", '{"prompt": "a", "Response": "b"}', "Response"),
        ("a.csv", "prompt,reponse\na,b", "reponse"),
        ("a.jsonl", '{"prompt": "a", "response_id": 1, "answer": "b"}', ""),
        ("a.csv", "prompt,response,responses\na,b,c", ""),
        ("a.txt", "responce", ""),
    ],
)
def test_a_field_that_looks_like_a_response_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, text: str, field: str
) -> None:
    (tmp_path / name).write_text(text)
    open_prompts(tmp_path / name)
    said = f"{name}: the field '{field}' is ignored; a response is read from the field 'response'"
    assert caplog.messages == ([said] if field else [])


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        open_texts(tmp_path / "none.jsonl")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two prompt files, a pair file, other entries, and a secret outside the folder."""
    made = tmp_path / "prompts"
    made.mkdir()
    (made / "questions.txt").write_text("Is it?\nIs it not?\n")
    (made / "more.jsonl").write_text('{"prompt": "Why?"}\n')
    (made / "pairs.csv").write_text("positive,negative\nYes,No\n")
    (made / "notes.md").write_text("notes")
    (made / "folder.txt").mkdir()
    (tmp_path / "secret.txt").write_text("secret\n")
    return made


def test_files_are_found_by_name(folder: Path) -> None:
    assert prompt_files(folder) == ["more.jsonl", "pairs.csv", "questions.txt"]
    prompts, pairs = find_texts("questions.txt", folder), find_texts("pairs.csv", folder)
    assert isinstance(prompts, PromptFile)
    assert list(prompts.texts()) == ["Is it?", "Is it not?"]
    assert isinstance(pairs, PairFile)
    assert [(pair.positive, pair.negative) for pair in pairs.pairs()] == [("Yes", "No")]


def test_a_dataset_is_found_by_name(folder: Path) -> None:
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


def test_a_mistyped_name_gets_a_suggestion(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"did you mean 'questions\.txt'"):
        find_texts("question.txt", folder)


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    assert "link.txt" not in prompt_files(folder)
    with pytest.raises(RequestError, match="no file called"):
        find_texts("link.txt", folder)
    (tmp_path / "other").symlink_to(folder)
    assert prompt_files(tmp_path / "other") == []


def test_a_missing_folder_has_no_files(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there are none yet"):
        find_texts("questions.txt", tmp_path / "none")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_what_is_not_a_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    for name in ("pipe.txt", "pipe.jsonl", "pipe.csv"):
        os.mkfifo(tmp_path / name)
        for read in (open_texts, open_prompts):
            with pytest.raises(RequestError, match=r"is a named pipe, not a regular file.*Next: save it to a file"):
                read(tmp_path / name)
    (tmp_path / "null.csv").symlink_to("/dev/null")
    with pytest.raises(RequestError, match="is a device, not a regular file"):
        open_pairs(tmp_path / "null.csv")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_dataset_with_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "dataset_info.json").write_text("{}")
    os.mkfifo(tmp_path / "data-00000-of-00001.arrow")
    with pytest.raises(RequestError, match=r"\.arrow is not a regular file"):
        open_texts(tmp_path)


def test_json_that_is_too_deep_or_too_long_is_named_by_its_line(tmp_path: Path) -> None:
    for hostile in ("[" * 200_000, '{"prompt": ' + "9" * 9000 + "}"):
        (tmp_path / "mine.jsonl").write_text('{"prompt": "w5"}\n' + hostile)
        with pytest.raises(RequestError, match="line 2 is not valid JSON"):
            list(open_prompts(tmp_path / "mine.jsonl").texts())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"prompt": "one", "response": "yes"}\n{"response": "no", "prompt": "two"}\n'),
        ("a.csv", "response,prompt,id\nyes,one,1\nno,two,2\n"),
    ],
)
def test_a_field_of_responses_is_read(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    file = open_prompts(tmp_path / name)
    assert file.answered
    assert [(prompt.text, prompt.responses) for prompt in file.prompts()] == [("one", ("yes",)), ("two", ("no",))]
    assert [*file.texts()] == ["one", "two"]


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ('{"prompt": "two"}', "line 2 has no response, unlike the first"),
        ('{"prompt": "two", "response": " "}', "line 2: the response is only white space"),
        ('{"prompt": "two", "response": 3}', "line 2: the response is not a text: 3"),
        ('{"prompt": "two", "response": "\\ud83d"}', "line 2: the response contains a lone surrogate"),
    ],
)
def test_a_missing_or_empty_response_is_named(tmp_path: Path, second: str, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "one", "response": "yes"}\n' + second)
    with pytest.raises(RequestError, match=said):
        list(open_prompts(path).prompts())
    path.write_text('{"prompt": "one"}\n{"prompt": "two", "response": "yes"}')
    with pytest.raises(RequestError, match="line 2 has a response, unlike the first"):
        list(open_prompts(path).prompts())
