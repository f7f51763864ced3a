"""An error says what is wrong, what was expected and what to do next, and which exit code the program ends with."""

import pytest

from engine.errors import CaptureError, LayerscopeError, ModelError, RequestError, StoreError, nearest


def test_the_three_parts_read_as_sentences() -> None:
    error = LayerscopeError("layer 30 does not exist", expected="0 to 29", next_step="give a smaller one")
    assert str(error) == "layer 30 does not exist. Expected: 0 to 29. Next: give a smaller one."
    assert (error.problem, error.expected, error.next_step) == (
        "layer 30 does not exist",
        "0 to 29",
        "give a smaller one",
    )


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (LayerscopeError("it broke"), "it broke."),
        (LayerscopeError("it broke."), "it broke."),
        (LayerscopeError("it broke", expected="a whole one"), "it broke. Expected: a whole one."),
        (LayerscopeError("it broke", next_step="mend it"), "it broke. Next: mend it."),
        (LayerscopeError("no 'a'; did you mean 'b'?"), "no 'a'; did you mean 'b'?"),
    ],
)
def test_parts_that_are_missing_or_end_a_sentence_themselves(error: LayerscopeError, text: str) -> None:
    assert str(error) == text


def test_each_kind_has_an_exit_code_of_its_own() -> None:
    kinds = [LayerscopeError, RequestError, ModelError, CaptureError, StoreError]
    assert [kind.exit_code for kind in kinds] == [1, 2, 3, 4, 5]


def test_every_kind_is_caught_as_one() -> None:
    for kind in (RequestError, ModelError, CaptureError, StoreError):
        with pytest.raises(LayerscopeError, match="it broke"):
            raise kind("it broke")


@pytest.mark.parametrize(
    ("name", "known", "words"),
    [
        ("honest", ["empathy", "honesty"], "did you mean 'honesty'?"),
        ("HONEST", ["empathy", "honesty"], "did you mean 'honesty'?"),
        ("qwen", ["qwen2", "qwen3", "phi"], "did you mean 'qwen3' or 'qwen2'?"),
        ("zzz", ["empathy", "honesty"], "choose one of: empathy, honesty"),
        ("zzz", [], "there are none yet"),
    ],
)
def test_nearest_leads_from_a_wrong_name_to_the_right_one(name: str, known: list[str], words: str) -> None:
    assert nearest(name, known) == words
