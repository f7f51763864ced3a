"""Pair files: both formats give the same pairs, and errors name the line and field."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.concepts.pair_files import WrittenPair, named_factors, open_pairs
from engine.concepts.text_files import open_prompts, open_texts
from engine.errors import RequestError

ROWS = [
    {"positive": 'Be kind, "always".', "negative": "Be cruel.", "persona": "one"},
    {"positive": "Two\nlines", "negative": "No lines", "persona": "two"},
]


def read_pairs(path: Path) -> list[WrittenPair]:
    return list(open_pairs(path).pairs())


def test_jsonl_and_csv_give_the_same_pairs(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("\n\n".join(json.dumps(row) for row in ROWS))
    (tmp_path / "pairs.csv").write_text(
        'persona,negative,positive\none,Be cruel.,"Be kind, ""always""."\ntwo,No lines,"Two\nlines"\n'
    )
    one, two = read_pairs(tmp_path / "pairs.jsonl"), read_pairs(tmp_path / "pairs.csv")
    assert [(pair.line, replace(pair, line=0)) for pair in one] == [
        (line, replace(pair, line=0)) for line, pair in zip((1, 3), two, strict=True)
    ]
    assert [pair.line for pair in two] == [2, 4]
    assert [pair.positive for pair in one] == [row["positive"] for row in ROWS]
    assert [pair.negative for pair in one] == ["Be cruel.", "No lines"]
    assert [dict(pair.factors) for pair in one] == [
        {"template": "", "persona": name, "topic": ""} for name in ("one", "two")
    ]


def test_a_file_without_factors_has_empty_ones(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_bytes("\ufeffpositive,negative\r\ngut,böse\r\n".encode())
    [pair] = read_pairs(tmp_path / "pairs.csv")
    assert not named_factors(pair.factors)
    assert pair.negative == "böse"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("pairs.txt", "x", r"'pairs\.txt' is not a supported file type.*\.jsonl or \.csv"),
        ("pairs.jsonl", "", "contains no pairs"),
        ("pairs.csv", "positive,negative\n", "contains no pairs"),
        ("pairs.jsonl", '{"positive": "a", "negative": "b"}\n{"positive": "a"', "line 2 is not valid JSON"),
        ("pairs.jsonl", '["a", "b"]', "line 1 is not a JSON object"),
        ("pairs.jsonl", '{"positive": "a"}', "line 1: negative is missing"),
        ("pairs.jsonl", '{"positive": " ", "negative": "b"}', "line 1: the positive prompt is only white space: ' '"),
        ("pairs.jsonl", '{"positive": "a", "negative": "b", "topic": 3}', "line 1: topic must be a string, not 3"),
        ("pairs.jsonl", '{"positive": "a", "negative": "b", "persona": 0}', "line 1: persona must be a string, not 0"),
        ("pairs.csv", "positive,negativ\na,b\n", "line 2: unknown field 'negativ'; did you mean 'negative'"),
        ("pairs.csv", "positive,negative\na,b,c\n", "line 2 has more cells than the header has columns"),
        ("pairs.csv", "positive,negative\na\n", "line 2: negative is missing"),
        ("pairs.jsonl", '{"positive": "a", "negative": "b", "positive_response": "c"}', "negative_response is missing"),
        (
            "pairs.jsonl",
            '{"positive": "a", "negative": "b"}\n{"positive": "a", "negative": "b", "negative_response": "c"}',
            "line 2: positive_response is missing.*a response to every prompt",
        ),
        (
            "pairs.jsonl",
            '{"positive": "a", "negative": "b"}\n'
            '{"positive": "a", "negative": "b", "positive_response": "c", "negative_response": "d"}',
            "line 2 has a response, unlike the first",
        ),
        (
            "pairs.csv",
            "positive,negative,positive_response,negative_response\na,b,c,d\na,b,,d\n",
            "line 3: the positive response is empty",
        ),
        (
            "pairs.jsonl",
            '{"positive": "a", "negative": "a", "positive_response": "c", "negative_response": "c"}',
            "positive and negative are the same text.*or two responses",
        ),
        ("pairs.csv", "positive,negative\na,b\n\xff,b\n", r"pairs\.csv, line 3 is not UTF-8.*save the file in UTF-8"),
    ],
)
def test_an_error_names_the_line_and_field(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(RequestError, match=said):
        read_pairs(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        '[{"positive": "a", "negative": "b"}]',
        '[\n  {"positive": "a", "negative": "b"}\n]',
        '[{"positive": "a", "negative": "b"},\n {"positive": "c", "negative": "d"}]',
        '{\n  "positive": "a",\n  "negative": "b"\n}',
    ],
    ids=["one line", "indented", "one object a line", "one indented object"],
)
@pytest.mark.parametrize("open_file", [open_pairs, open_texts, open_prompts])
def test_json_that_is_not_one_object_per_line_is_refused_with_how_to_write_it(
    tmp_path: Path, content: str, open_file: Callable[[Path], object]
) -> None:
    (tmp_path / "pairs.jsonl").write_text(content)
    said = r"pairs.jsonl is JSON, but not one object per line.*Next: write one object per line, without brackets"
    with pytest.raises(RequestError, match=said):
        open_file(tmp_path / "pairs.jsonl")


@pytest.mark.parametrize(("separator", "called"), [(";", "semicolons"), ("\t", "tabs")])
@pytest.mark.parametrize("open_file", [open_pairs, open_texts, open_prompts])
def test_a_table_without_commas_is_refused_with_its_separator(
    tmp_path: Path, separator: str, called: str, open_file: Callable[[Path], object]
) -> None:
    rows = [("positive", "negative", "prompt"), ("a", "b", "c")]
    (tmp_path / "pairs.csv").write_text("\n".join(map(separator.join, rows)))
    with pytest.raises(
        RequestError, match=rf"has {called} between its columns\. Expected: commas\. Next: save it as CSV"
    ):
        open_file(tmp_path / "pairs.csv")


@pytest.mark.parametrize(
    ("name", "step"), [("a.json", "write one object per line.*, in a file ending in .jsonl"), ("a.tsv", "with commas")]
)
@pytest.mark.parametrize("open_file", [open_pairs, open_texts, open_prompts])
def test_files_of_other_types_are_refused_with_how_to_convert_them(
    tmp_path: Path, name: str, step: str, open_file: Callable[[Path], object]
) -> None:
    (tmp_path / name).write_text("[]")
    with pytest.raises(RequestError, match=rf"'{name}' is not a supported file type.*Next: .*{step}"):
        open_file(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"pairs\.csv cannot be read: .*No such file"):
        read_pairs(tmp_path / "pairs.csv")


ANSWERED = [
    {"positive": "Go on.", "negative": "Go on.", "positive_response": "Gladly.\nHere:", "negative_response": "No!"},
    {"positive": "You?", "negative": "Me?", "positive_response": "Yes", "negative_response": "Yes"},
]


def test_both_formats_give_the_same_responses(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in ANSWERED))
    (tmp_path / "pairs.csv").write_text(
        'negative_response,positive,negative,positive_response\nNo!,Go on.,Go on.,"Gladly.\nHere:"\nYes,You?,Me?,Yes\n'
    )
    for name in ("pairs.jsonl", "pairs.csv"):
        pairs = read_pairs(tmp_path / name)
        assert [pair.responses for pair in pairs] == [("Gladly.\nHere:", "No!"), ("Yes", "Yes")]
        assert open_pairs(tmp_path / name).answered


def test_a_file_without_responses_is_not_answered(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("positive,negative\na,b\n")
    assert not open_pairs(tmp_path / "pairs.csv").answered
    assert read_pairs(tmp_path / "pairs.csv")[0].responses == ()
