"""Where the two sides lie, as a picture: every prompt counted, every pair a line."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from engine.plots.classes_figure import draw_sides
from engine.plots.style import save_figure
from tests.engine.plots.pictures import svg_words
from tests.engine.plots.results import sides_of

POSITIVE = [2.0, 1.0, 1.1, 0.5, -0.5, 0.25]
NEGATIVE = [-2.0, -1.0, -1.2, 0.75, 1.5, -0.25]  # pairs 3 and 4 point the wrong way


def bars(axes: Axes) -> dict[str, list[Rectangle]]:
    """The columns of each side, by the name that the legend gives it."""
    found: dict[str, list[Rectangle]] = {}
    for container in axes.containers:
        patches = [patch for patch in container.get_children() if isinstance(patch, Rectangle)]
        found[str(patches[0].get_label())] = patches
    return found


def test_the_columns_count_every_prompt() -> None:
    above, _ = draw_sides(sides_of(POSITIVE, NEGATIVE)).axes
    columns = bars(above)
    assert set(columns) == {"positive", "negative"}
    for name, values in (("positive", POSITIVE), ("negative", NEGATIVE)):
        assert sum(column.get_height() for column in columns[name]) == len(values)
        for column in columns[name]:
            left, right = column.get_x(), column.get_x() + column.get_width()
            last = right == pytest.approx(max(POSITIVE))
            inside = [value for value in values if left <= value < right or (last and value >= left)]
            assert column.get_height() == len(inside)


def test_a_line_stands_at_the_mean_of_each_side() -> None:
    above, _ = draw_sides(sides_of(POSITIVE, NEGATIVE)).axes
    means = {to_hex(line.get_color()): np.asarray(line.get_xdata()).tolist()[0] for line in above.get_lines()}
    assert sorted(means.values()) == pytest.approx(sorted([np.mean(POSITIVE), np.mean(NEGATIVE)]))


def test_every_pair_is_a_line_the_wrong_ones_below_in_another_colour() -> None:
    _, below = draw_sides(sides_of(POSITIVE, NEGATIVE)).axes
    *pairs, negative, positive = below.get_lines()
    ends = [np.asarray(line.get_xdata()).tolist() for line in pairs]
    gaps = [right - left for left, right in ends]
    assert sorted(map(tuple, ends)) == sorted(zip(NEGATIVE, POSITIVE, strict=True))
    assert gaps == sorted(gaps)
    assert np.asarray(negative.get_xdata()).tolist() == [left for left, _ in ends]
    assert np.asarray(positive.get_xdata()).tolist() == [right for _, right in ends]
    colours = [to_hex(line.get_color()) for line in pairs]
    assert len(set(colours[:2])) == len(set(colours[2:])) == 1
    assert colours[0] != colours[2]
    assert negative.get_marker() != positive.get_marker()


def test_values_that_are_all_equal_are_drawn(tmp_path: Path) -> None:
    path = save_figure(partial(draw_sides, sides_of([1.0] * 4, [1.0] * 4)), tmp_path / "sides.png")
    assert path.stat().st_size > 0


def test_the_words_can_be_searched(tmp_path: Path) -> None:
    draw = partial(draw_sides, sides_of(POSITIVE, NEGATIVE), "cost: $5 or $6")
    words = set(svg_words(save_figure(draw, tmp_path / "sides.svg")))
    assert words >= {
        *("cost: $5 or $6", "layer 7, a persona left out: d' 1.50, AUROC 0.875", "positive", "negative"),
        *("prompts", "pair", "projection of left-out prompts (units of the spread within a side)"),
    }


def test_pairs_without_factors_are_left_out_by_the_fifth(tmp_path: Path) -> None:
    draw = partial(draw_sides, sides_of(POSITIVE, NEGATIVE, left_out="pairs"), "honesty")
    words = " ".join(svg_words(save_figure(draw, tmp_path / "sides.svg")))
    assert "each pairs" not in words
    assert "fifth of the pairs left out" in words


def test_it_can_be_drawn_into_a_figure_that_is_there() -> None:
    figure = Figure()
    assert draw_sides(sides_of(POSITIVE, NEGATIVE), "honesty", figure) is figure
    assert len(figure.axes) == 2
