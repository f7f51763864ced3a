"""Texts become bags of words, signs and neighbors."""

import torch

from engine.stats.text_features import BagPairs, capitals_in, neighbors_of, pair_groups, signs_of, words_of
from tests.engine.stats.contrasts import all_factors


def test_words_ignore_case_and_repetition() -> None:
    assert words_of("The cat; the CAT sat.") == {"the": 1, "cat": 1, "sat": 1}


def test_signs_are_counted_with_line_breaks() -> None:
    assert signs_of("Stop!! Now?\n") == {"!": 2, "?": 1, "\n": 1}
    assert signs_of("plain words") == {}


def test_neighbors_keep_case_signs_and_order() -> None:
    assert list(neighbors_of("No, Ann")) == ["(start) No", "No ,", ", Ann", "Ann (end)"]
    assert neighbors_of("a b") != neighbors_of("b a")


def test_capitals_are_counted_so_that_more_lowercase_words_change_nothing() -> None:
    assert capitals_in("An Élan of OK") == capitals_in("An Élan of OK and much more") == 4


def test_columns_are_what_differs_and_vectors_hold_the_counts() -> None:
    prompts = [("a! b", "a b?"), ("b! c!", "c. b"), ("same.", "same.")]
    told: list[None] = []
    bags = BagPairs(
        3, lambda number: (signs_of(prompts[number][0]), signs_of(prompts[number][1])), lambda: told.append(None)
    )
    assert bags.columns() == ["!", ".", "?"]
    ((positive, negative),) = bags.vectors(["!", ".", "?"])()
    assert torch.equal(positive, torch.tensor([[1.0, 0, 0], [2, 0, 0], [0, 1, 0]]).double())
    assert torch.equal(negative, torch.tensor([[0.0, 0, 1], [0, 1, 0], [0, 1, 0]]).double())
    assert told


def test_telltale_features_are_counted_in_groups() -> None:
    prompts = [("new x", "old x"), ("new", "old y"), ("old", "z"), ("new", "new")]
    bags = BagPairs(4, lambda number: (words_of(prompts[number][0]), words_of(prompts[number][1])), lambda: None)
    found = bags.telltale(bags.columns(), "persona", ["ann", "bob", "cy", "cy"])
    assert found == [{"text": "new", "positive": 2, "negative": 0, "total": 3, "counted": "persona"}]


def test_groups_are_the_values_of_a_factor_or_the_pairs() -> None:
    factors = all_factors(3, 1, 2)
    assert pair_groups(factors, "persona", 6) == ("persona", ["p0", "p0", "p1", "p1", "p2", "p2"])
    assert pair_groups(None, "pairs", 2) == ("pair", ["0", "1"])
