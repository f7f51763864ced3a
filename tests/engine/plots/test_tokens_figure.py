"""The heat map of a reading: every cell is a token's z-score in its layer."""

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

from engine.plots.style import GREY, save_figure
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


def cells(reading: TokenReading) -> list[list[float | None]]:
    """Values of the heat map, lowest layer first; None for a hatched token."""
    shown = np.ma.masked_invalid(np.asarray(image(draw_tokens(reading).axes[0]).get_array()))
    values: list[list[float | None]] = shown.tolist()
    return values


def hatched(axes: Axes) -> list[tuple[float, float]]:
    """Left and right edge of every hatched span."""
    spans = [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_hatch()]
    return [(span.get_x(), span.get_x() + span.get_width()) for span in spans]


def test_the_cells_are_z_scores() -> None:
    assert cells(reading_of(TOKENS, *ROWS)) == [[None, *stand_out(row)[1:]] for row in ROWS]


def test_tokens_that_are_set_aside_are_hatched_and_do_not_scale_the_colors() -> None:
    values = [900.0, -70.0, 1.0, 2.0, 4.0, 60.0, 3.0]
    reading = reading_of(["<s>", "user", "be", "kind", "now", "</s>", "!"], values, set_aside=[0, 1, 5])
    spread = 1.4826  # the median absolute deviation of 1, 2, 4, 3 is 1
    expected = [(value - 2.5) / spread for value in (1.0, 2.0, 4.0, 3.0)]
    (row,) = cells(reading)
    assert [place for place, value in enumerate(row) if value is None] == [0, 1, 5]
    assert [value for value in row if value is not None] == pytest.approx(expected)
    axes = draw_tokens(reading).axes[0]
    assert hatched(axes) == [(-0.5, 1.5), (4.5, 5.5)]
    colors = [label.get_color() for label in axes.get_xticklabels()]
    assert [color == GREY for color in colors] == [True, True, False, False, False, True, False]
    assert axes.get_xlabel() == "hatched: first token, special tokens and chat template"


def test_the_text_of_a_token_is_its_label() -> None:
    axes = draw_tokens(reading_of(["Ã©", "Ċ"], [0.5, 0.6], texts=["é", "\n"])).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["é", "⏎"]


def test_the_first_layer_is_at_the_bottom() -> None:
    axes = draw_tokens(reading_of(TOKENS, *ROWS)).axes[0]
    assert image(axes).origin == "lower"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["3", "7", "11"]
    low, high = axes.get_ylim()
    assert low < high


def test_z_scores_ignore_the_first_token() -> None:
    found = stand_out([900.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    spread = 1.4826  # the median absolute deviation is 1
    assert found == pytest.approx([897 / spread, -2 / spread, -1 / spread, 0, 1 / spread, 2 / spread])


def test_normal_values_have_unit_z_scores() -> None:
    values = np.random.default_rng(0).normal(7.0, 0.25, size=20_000).tolist()
    found = np.asarray(stand_out(values))
    assert np.std(found) == pytest.approx(1.0, abs=0.03)
    assert np.mean(found) == pytest.approx(0.0, abs=0.03)


def test_z_scores_ignore_scale_and_shift() -> None:
    values = [0.3, 0.1, 0.9, -0.4, 0.2]
    assert stand_out([100 * value - 40 for value in values]) == pytest.approx(stand_out(values))


@pytest.mark.parametrize("values", [[2.0], [900.0, 1.0], [5.0, 1.0, 1.0, 1.0], [5.0, 1.0, 1.0, 1.0, 9.0]])
def test_without_spread_every_z_score_is_zero(values: list[float]) -> None:
    assert stand_out(values) == [0.0] * len(values)


def test_one_token_and_one_layer_are_drawn(tmp_path: Path) -> None:
    reading = reading_of(["Ġtrue"], [0.5])
    assert cells(reading) == [[0.0]]
    assert save_figure(partial(draw_tokens, reading), tmp_path / "tokens.png").stat().st_size > 0


def test_every_color_scale_is_the_same_with_gray_in_the_middle() -> None:
    for rows in (ROWS, [[0.0, 1e9, -1e9, 3.0]], [[0.5] * 4]):
        shown = image(draw_tokens(reading_of(TOKENS, *rows)).axes[0])
        assert shown.get_clim() == (-3.0, 3.0)
        low, middle, high = shown.to_rgba(np.asarray([-3.0, 0.0, 3.0])).tolist()
        assert max(middle[:3]) - min(middle[:3]) < 0.02
        assert low != high


def outlined(axes: Axes) -> list[tuple[float, float]]:
    """Lower and upper edge of every outline."""
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle) and not patch.get_hatch()]
    return [(frame.get_y(), frame.get_y() + frame.get_height()) for frame in frames]


@pytest.mark.parametrize(("leading", "row"), [(3, 0), (7, 1), (11, 2)])
def test_the_leading_layer_is_outlined(leading: int, row: int) -> None:
    axes = draw_tokens(reading_of(TOKENS, *ROWS, leading=leading)).axes[0]
    assert outlined(axes) == [(row - 0.5, row + 0.5)]
    assert not any(patch.get_fill() for patch in axes.patches)


def test_a_leading_layer_that_was_not_read_is_not_outlined() -> None:
    assert outlined(draw_tokens(reading_of(TOKENS, *ROWS, leading=5)).axes[0]) == []


def test_every_token_has_its_label() -> None:
    axes = draw_tokens(reading_of(TOKENS, *ROWS)).axes[0]
    assert axes.get_xticks().tolist() == [0, 1, 2, 3]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["<s>", "swear", "␣", "true"]


@pytest.mark.parametrize("count", [80, 81, 160, 161, 1000])
def test_some_of_many_tokens_are_labeled(count: int) -> None:
    axes = draw_tokens(reading_of([f"t{place}" for place in range(count)], [0.0] * count)).axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert 40 <= len(labels) <= 80
    assert labels == [f"t{place}" for place in axes.get_xticks().astype(int)]


def test_some_layers_of_a_deep_model_are_labeled() -> None:
    axes = draw_tokens(reading_of(["a"], *([0.0] for _ in range(80)))).axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) <= 20
    assert labels == [str(3 + 4 * place) for place in axes.get_yticks().astype(int)]


def test_four_thousand_tokens_are_drawn_quickly(tmp_path: Path) -> None:
    count = 4096
    reading = reading_of(["Ġw"] * count, *([place % 7 - 3.0 for place in range(count)] for _ in range(30)))
    start = time.perf_counter()
    path = save_figure(partial(draw_tokens, reading), tmp_path / "tokens.png")
    assert time.perf_counter() - start < 20  # about 2 seconds on one core
    assert path.stat().st_size > 0
    width, height = draw_tokens(reading).get_size_inches()
    assert width <= 14
    assert height <= 14


def test_names_and_tokens_are_drawn_literally(tmp_path: Path) -> None:
    reading = reading_of(["a$b$", "$_$", "<s>", "&"], *ROWS, concept="cost: $5 or $6", method="logistic")
    words = svg_words(save_figure(partial(draw_tokens, reading), tmp_path / "tokens.svg"))
    assert {"cost: $5 or $6 (logistic)", "a$b$", "$_$", "<s>", "&"} <= set(words)
    assert {"layer", "robust z-score within the layer", "token projections, standardized within each layer"} <= set(
        words
    )


def test_pairs_without_a_concept_are_called_custom(tmp_path: Path) -> None:
    reading = reading_of(TOKENS, *ROWS, concept=None)
    words = svg_words(save_figure(partial(draw_tokens, reading), tmp_path / "tokens.svg"))
    assert "custom pairs (mean_diff)" in words


@pytest.mark.parametrize("token", ["正直さ", "😀", "a" * 90], ids=["CJK", "emoji", "long"])
def test_no_token_causes_a_warning(tmp_path: Path, token: str) -> None:
    """The warning would reach stderr with its source line."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(partial(draw_tokens, reading_of([token, *TOKENS[1:]], *ROWS)), tmp_path / "tokens.png")


def test_it_draws_into_a_given_figure() -> None:
    figure = Figure()
    assert draw_tokens(reading_of(TOKENS, *ROWS), figure) is figure
    assert len(figure.axes) == 2  # the heat map and its color bar
