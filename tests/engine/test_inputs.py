"""Text-like and number-like values become plain values; others are refused with advice."""

from collections import deque
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import BatchEncoding

import engine
from engine.concepts.catalog import load_concept
from engine.concepts.pair_files import open_pairs
from engine.concepts.text_files import open_prompts, open_texts
from engine.errors import CaptureError, RequestError
from engine.inputs import is_text, plain_text, plain_texts, require_whole, user_path
from engine.models.registry import find_source
from engine.store.names import locate
from server.http import read_token
from tests.engine.cli.conftest import concept_text


class Loud(str):
    """A string whose `__str__` returns something else."""

    __slots__ = ()

    def __str__(self) -> str:
        return "LOUD"


@pytest.mark.parametrize("given", ["a", np.str_("a"), np.array("a"), Loud("a"), pd.Series(["a"])[0]])
def test_a_text_becomes_a_plain_string(given: Any) -> None:
    assert is_text(given)
    assert (plain_text(given, "it"), type(plain_text(given, "it"))) == ("a", str)


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        deque,
        iter,
        np.array,
        pd.Series,
        pd.Index,
        lambda texts: np.array(texts, dtype=object),
        lambda texts: pd.Series(texts, dtype="string"),
        lambda texts: dict.fromkeys(texts).keys(),
        lambda texts: (text for text in texts),
    ],
)
def test_several_texts_become_a_list_of_plain_strings(make: Callable[[list[str]], Any]) -> None:
    given = make(["a", "b"])
    assert not is_text(given)
    texts = plain_texts(given)
    assert texts == ["a", "b"]
    assert {type(text) for text in texts} == {str}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": "a"}, "the prompt is a dictionary.*pass its texts"),
        (BatchEncoding({"input_ids": [1, 2]}), "the prompt is the output of a tokenizer.*pass the text itself"),
        ([{"role": "user", "content": "a"}], "prompt 0 is a chat message.*apply_chat_template.*rendered=True"),
        ({"role": "user", "content": "a"}, "the prompt is a chat message"),
        ([1, 2], "prompt 0 is a number.*tokenizer.decode"),
        (7, "the prompt is a number"),
        (np.array([1, 2]), "prompt 0 is a number"),
        (torch.tensor([[1, 2]]), "the prompt is a number or an array of numbers.*tokenizer.decode"),
        (b"a", "the prompt is bytes.*decode"),
        (np.array([b"a"]), "prompt 0 is bytes"),
        (Path("a.txt"), "the prompt is a file.*capture_prompt_file"),
        (StringIO("a"), "the prompt is a file"),
        ({"a", "b"}, "the prompt is a set, which has no order.*pass a list"),
        (None, r"the prompt is missing \(None\)"),
        (["a", None], "prompt 1 is missing"),
        ([["a"]], "prompt 0 is a value of type list"),
        (pd.DataFrame({"prompt": ["a"]}), "the prompt is a value of type DataFrame"),
        (pd.Series(["a", None]), "prompt 1 is"),
        ("a", r"the prompts are a single string, not a list.*pass \[text\]"),
    ],
)
def test_other_values_are_refused_with_advice(given: Any, said: str) -> None:
    with pytest.raises(CaptureError, match=said):
        plain_texts(given)


@pytest.mark.parametrize("given", [3, np.int64(3), torch.tensor(3), np.array(3)])
def test_a_whole_number_becomes_a_plain_int(given: Any) -> None:
    assert (require_whole(given, "it"), type(require_whole(given, "it"))) == (3, int)


@pytest.mark.parametrize("given", [3.0, True, "3", None, np.float64(3), [3], np.array([1, 2]), 0])
def test_other_values_and_small_numbers_are_refused(given: Any) -> None:
    with pytest.raises(RequestError, match=r"the seed cannot be .* a whole number, at least 1"):
        require_whole(given, "the seed", least=1)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_home_folder_is_expanded_everywhere(home: Path) -> None:
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
        ("x" * 3000, "x…' is too long"),
        ("a\ud83d", "lone surrogates"),
        (b"x", "a value of type bytes is not a path"),
        (["x"], "type list is not a path.*one file or folder"),
        (None, "type NoneType is not a path"),
    ],
)
def test_an_invalid_path_is_refused(given: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        user_path(given)
