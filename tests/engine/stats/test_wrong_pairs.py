"""Pairs that point the wrong way: found by hand."""

from engine.stats.wrong_pairs import pair_gaps, wrong_pairs
from tests.engine.plots.results import sides_of


def test_the_furthest_wrong_come_first() -> None:
    assert wrong_pairs(sides_of([0.0, 2.0, -1.0, 0.5], [0.25, -2.0, 2.0, 1.0])) == [2, 3, 0]
    assert wrong_pairs(sides_of([1.0, 0.0], [-1.0, 0.0])) == []  # equal is not wrong


def test_gaps_are_positive_minus_negative_in_the_order_of_the_pairs() -> None:
    assert pair_gaps(sides_of([0.0, 2.0], [0.25, -2.0])) == [-0.25, 4.0]
