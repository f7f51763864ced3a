"""Score, interval and shuffled labels in one line: every mark at the column of its number."""

import pytest

from engine.plots.whiskers import Scale, whiskers
from engine.records.ranking import RankedLayer
from tests.engine.plots.records import ranking_of

# Sixteen columns apart: a score of 3 stands at column 3.
SCALE = Scale(0.0, 16.0, 17)


def layer_with(
    score: float, interval: tuple[float, float], null: tuple[float, float], tied: bool = False
) -> RankedLayer:
    (layer,) = ranking_of([score])["layers"]
    layer["low"], layer["high"] = interval
    layer["null_low"], layer["null_high"] = null
    layer["tied"] = tied
    return layer


@pytest.mark.parametrize(
    ("layer", "drawn"),
    [
        (layer_with(12.0, (9.0, 15.0), (0.0, 4.0)), "░░░░░    ━━━●━━━ "),
        (layer_with(4.0, (2.0, 6.0), (0.0, 8.0)), "░░━━●━━░░        "),
        (layer_with(0.0, (0.0, 3.0), (5.0, 5.0)), "●━━━ ░           "),
        (layer_with(16.0, (16.0, 16.0), (14.0, 16.0)), "              ░░●"),
        (layer_with(3.4, (2.6, 3.6), (8.4, 8.6)), "   ●━   ░░       "),
    ],
    ids=["apart", "inside", "left edge", "right edge", "rounded"],
)
def test_every_mark_is_at_the_column_of_its_number(layer: RankedLayer, drawn: str) -> None:
    assert whiskers(layer, SCALE).plain == drawn


def test_what_is_tied_has_another_colour_than_what_is_behind() -> None:
    styles = [
        {str(span.style) for span in whiskers(layer_with(8.0, (7.0, 9.0), (8.0, 8.0), tied=tied), SCALE).spans}
        for tied in (True, False)
    ]
    assert [len(of_one) for of_one in styles] == [1, 1]
    assert styles[0] != styles[1]


def test_every_interval_of_a_ranking_fits_its_scale() -> None:
    layers = [
        layer_with(-3.0, (-4.0, -2.0), (-0.5, 0.5)),
        layer_with(11.0, (9.0, 13.0), (-0.5, 0.5)),
        layer_with(0.0, (-0.1, 0.1), (-6.0, 1.0)),
    ]
    scale = Scale.of(layers, 20)
    assert (scale.low, scale.high, scale.width) == (-6.0, 13.0, 20)
    assert (scale.column(-6.0), scale.column(13.0)) == (0, 19)
    assert {len(whiskers(layer, scale).plain) for layer in layers} == {20}


def test_where_all_numbers_are_one_there_is_a_scale_too() -> None:
    layer = layer_with(0.0, (0.0, 0.0), (0.0, 0.0))
    assert whiskers(layer, Scale.of([layer], 5)).plain == "●    "
