"""A text read along directions, as a heat map: every cell holds what its token shows within its layer."""

import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from engine.plots.style import save_figure
from engine.plots.tokens_figure import draw_tokens
from engine.plots.tokens_text import stand_out
from engine.records.files import TokenReading
from tests.engine.plots.pictures import svg_words
from tests.engine.plots.results import reading_of

TOKENS = ["<s>", "Ġswear", "Ġ", "Ġtrue"]
ROWS = ([900.0, 0.1, 0.2, 0.3], [-5.0, 2.0, 2.0, 3.5], [0.0, 1.0, -1.0, 0.5])


def image(axes: Axes) -> AxesImage:
    (found,) = axes.images
    return found


def cells(reading: TokenReading) -> list[list[float]]:
    """What the picture holds, lowest layer first."""
    values: list[list[float]] = np.asarray(image(draw_tokens(reading).axes[0]).get_array()).tolist()
    return values


def test_the_cells_are_how_far_tokens_stand_out() -> None:
    assert cells(reading_of(TOKENS, *ROWS)) == [stand_out(row) for row in ROWS]


def test_the_first_layer_is_at_the_bottom() -> None:
    axes = draw_tokens(reading_of(TOKENS, *ROWS)).axes[0]
    assert image(axes).origin == "lower"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["3", "7", "11"]
    low, high = axes.get_ylim()
    assert low < high


def test_standing_out_is_in_spreads_from_the_median_without_the_first_token() -> None:
    found = stand_out([900.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    spread = 1.4826  # the median distance from 3 is 1
    assert found == pytest.approx([897 / spread, -2 / spread, -1 / spread, 0, 1 / spread, 2 / spread])


def test_normal_values_have_a_spread_of_one() -> None:
    values = np.random.default_rng(0).normal(7.0, 0.25, size=20_000).tolist()
    found = np.asarray(stand_out(values))
    assert np.std(found) == pytest.approx(1.0, abs=0.03)
    assert np.mean(found) == pytest.approx(0.0, abs=0.03)


def test_scale_and_shift_of_a_layer_do_not_show() -> None:
    values = [0.3, 0.1, 0.9, -0.4, 0.2]
    assert stand_out([100 * value - 40 for value in values]) == pytest.approx(stand_out(values))


@pytest.mark.parametrize("values", [[2.0], [900.0, 1.0], [5.0, 1.0, 1.0, 1.0], [5.0, 1.0, 1.0, 1.0, 9.0]])
def test_where_tokens_have_no_spread_none_stands_out(values: list[float]) -> None:
    assert stand_out(values) == [0.0] * len(values)


def test_one_token_and_one_layer_are_drawn(tmp_path: Path) -> None:
    reading = reading_of(["Ġtrue"], [0.5])
    assert cells(reading) == [[0.0]]
    assert save_figure(partial(draw_tokens, reading), tmp_path / "tokens.png").stat().st_size > 0


def test_colours_have_one_scale_with_grey_in_the_middle() -> None:
    for rows in (ROWS, [[0.0, 1e9, -1e9, 3.0]], [[0.5] * 4]):
        shown = image(draw_tokens(reading_of(TOKENS, *rows)).axes[0])
        assert shown.get_clim() == (-3.0, 3.0)
        low, middle, high = shown.to_rgba(np.asarray([-3.0, 0.0, 3.0])).tolist()
        assert max(middle[:3]) - min(middle[:3]) < 0.02
        assert low != high


def outlined(axes: Axes) -> list[tuple[float, float]]:
    """Lower and upper edge of every frame."""
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return [(frame.get_y(), frame.get_y() + frame.get_height()) for frame in frames]


@pytest.mark.parametrize(("leading", "row"), [(3, 0), (7, 1), (11, 2)])
def test_the_leading_layer_is_outlined(leading: int, row: int) -> None:
    axes = draw_tokens(reading_of(TOKENS, *ROWS, leading=leading)).axes[0]
    assert outlined(axes) == [(row - 0.5, row + 0.5)]
    assert not axes.patches[0].get_fill()


def test_a_leading_layer_that_is_not_there_is_not_outlined() -> None:
    assert outlined(draw_tokens(reading_of(TOKENS, *ROWS, leading=5)).axes[0]) == []


def test_every_token_has_its_label() -> None:
    axes = draw_tokens(reading_of(TOKENS, *ROWS)).axes[0]
    assert axes.get_xticks().tolist() == [0, 1, 2, 3]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["<s>", "swear", "␣", "true"]


@pytest.mark.parametrize("count", [80, 81, 160, 161, 1000])
def test_of_many_tokens_some_are_labelled_each_its_own(count: int) -> None:
    axes = draw_tokens(reading_of([f"t{place}" for place in range(count)], [0.0] * count)).axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert 40 <= len(labels) <= 80
    assert labels == [f"t{place}" for place in axes.get_xticks().astype(int)]


def test_layers_of_a_deep_model_are_labelled_each_its_own() -> None:
    axes = draw_tokens(reading_of(["a"], *([0.0] for _ in range(80)))).axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) <= 20
    assert labels == [str(3 + 4 * place) for place in axes.get_yticks().astype(int)]


def test_four_thousand_tokens_are_drawn_quickly(tmp_path: Path) -> None:
    count = 4096
    reading = reading_of(["Ġw"] * count, *([place % 7 - 3.0 for place in range(count)] for _ in range(30)))
    begun = time.perf_counter()
    path = save_figure(partial(draw_tokens, reading), tmp_path / "tokens.png")
    assert time.perf_counter() - begun < 20  # about 2 seconds on one core
    assert path.stat().st_size > 0
    width, height = draw_tokens(reading).get_size_inches()
    assert width <= 14
    assert height <= 14


def test_names_and_tokens_are_drawn_as_they_are_written(tmp_path: Path) -> None:
    reading = reading_of(["a$b$", "$_$", "<s>", "&"], *ROWS, concept="cost: $5 or $6", method="logistic")
    words = svg_words(save_figure(partial(draw_tokens, reading), tmp_path / "tokens.svg"))
    assert {"cost: $5 or $6 (logistic)", "a$b$", "$_$", "<s>", "&"} <= set(words)
    assert {"layer", "spreads from the median", "tokens that stand out within their layer"} <= set(words)


def test_pairs_of_ones_own_have_no_name(tmp_path: Path) -> None:
    reading = reading_of(TOKENS, *ROWS, concept=None)
    words = svg_words(save_figure(partial(draw_tokens, reading), tmp_path / "tokens.svg"))
    assert "pairs of your own (mean_diff)" in words


@pytest.mark.parametrize("token", ["正直さ", "😀", "a" * 90], ids=["CJK", "emoji", "long"])
def test_drawing_any_token_warns_of_nothing(tmp_path: Path, token: str) -> None:
    """A user of the program would see the warning, with its line of source, on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(partial(draw_tokens, reading_of([token, *TOKENS[1:]], *ROWS)), tmp_path / "tokens.png")


def test_it_can_be_drawn_into_a_figure_that_is_there() -> None:
    figure = Figure()
    assert draw_tokens(reading_of(TOKENS, *ROWS), figure) is figure
    assert len(figure.axes) == 2  # the map, and its scale of colours
