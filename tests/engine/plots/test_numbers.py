"""Numbers as text: as exact as there is room for, and never wider."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.plots.numbers import norm_in_words, score_in_words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        *((0.0, "0.00"), (0.1234, "0.12"), (-0.95, "-0.95"), (9.994, "9.99")),
        *((9.996, "10.0"), (-12.34, "-12.3"), (99.94, "99.9"), (99.96, "100"), (1234.5, "1234"), (99999.0, "99999")),
        *((100_000.0, "1e+05"), (-250_000.0, "-2e+05")),
    ],
)
def test_scores(value: float, words: str) -> None:
    assert score_in_words(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        *((0.0, "0.000"), (0.0421, "0.042"), (33.96, "33.960"), (999.9994, "999.999")),
        *((999.9996, "1000.0"), (12345.6, "12345.6"), (99999.94, "99999.9")),
        *((99999.96, "1.00e+05"), (1.5e9, "1.50e+09")),
    ],
)
def test_norms(value: float, words: str) -> None:
    assert norm_in_words(value) == words


@given(st.floats(-99999, 99999))
def test_a_score_takes_six_characters_at_most_and_says_what_it_is(value: float) -> None:
    words = score_in_words(value)
    assert len(words) <= 6
    assert float(words) == pytest.approx(value, rel=0.0051, abs=0.0051)


@given(st.floats(0, 1e99))
def test_a_norm_takes_eight_characters_at_most_and_says_what_it_is(value: float) -> None:
    words = norm_in_words(value)
    assert len(words) <= 8
    assert float(words) == pytest.approx(value, rel=0.0051, abs=0.00051)
