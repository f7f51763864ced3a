"""Rows of a comparison: all of them, or evenly spread ones."""

from engine.records.results import ComparedLayer, Comparison
from server.replies.comparison import compared_rows


def comparison(layers: int) -> Comparison:
    rows = [ComparedLayer(layer=layer, cosine=0.12345, chance=0.2, ceiling=0.9) for layer in range(layers)]
    return Comparison(kind="directions", names=("a", "b"), titles=("a", "b"), directions=rows, depths=[], warnings=[])


def test_few_rows_are_all_there_and_rounded() -> None:
    rows = compared_rows(comparison(30))
    assert [row.layer for row in rows] == list(range(30))
    assert (rows[0].cosine, rows[0].random_within, rows[0].halves_reach) == (0.123, 0.2, 0.9)


def test_many_rows_are_thinned_from_the_first_on() -> None:
    rows = compared_rows(comparison(126))
    assert len(rows) <= 60
    assert [row.layer for row in rows] == list(range(0, 126, 3))


def test_no_rows_are_no_rows() -> None:
    assert compared_rows(comparison(0)) == []
