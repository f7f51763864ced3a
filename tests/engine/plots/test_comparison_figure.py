"""The figure of a comparison: every line and band shows the data."""

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from engine.plots.comparison_figure import draw_comparison
from engine.plots.style import save_figure
from tests.engine.plots.pictures import svg_words
from tests.engine.plots.results import FEW, MANY, compared_depths, compared_directions

ENDS: tuple[Literal["low", "high"], ...] = ("low", "high")
Points = list[tuple[float, float]]


def named_lines(axes: Axes) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in axes.get_lines()}


def points(line: Line2D) -> Points:
    return list(zip(np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist(), strict=True))


def corners(axes: Axes) -> list[set[tuple[float, float]]]:
    """Vertices of each band."""
    bands = [collection for collection in axes.collections if isinstance(collection, PolyCollection)]
    return [{(x, y) for x, y in np.asarray(band.get_paths()[0].vertices).tolist()} for band in bands]


def test_cosines_and_split_half_cosines_are_the_data() -> None:
    comparison = compared_directions()
    axes, _ = draw_comparison(comparison).axes
    lines = named_lines(axes)
    rows = comparison["directions"]
    assert points(lines["cosine"]) == [(row["layer"], row["cosine"]) for row in rows]
    assert points(lines["split halves of one capture"]) == [(row["layer"], row["ceiling"]) for row in rows]


def test_the_band_is_the_range_of_random_directions() -> None:
    comparison = compared_directions()
    axes, _ = draw_comparison(comparison).axes
    (band,) = corners(axes)
    assert band == {(row["layer"], sign * row["chance"]) for row in comparison["directions"] for sign in (-1, 1)}


def test_transfer_both_ways_is_the_data() -> None:
    comparison = compared_directions()
    _, axes = draw_comparison(comparison).axes
    lines, rows = named_lines(axes), comparison["directions"]
    there, back = lines["direction of honesty on empathy"], lines["direction of empathy on honesty"]
    assert points(there) == [(row["layer"], row["transfer"]["auroc"]) for row in rows]
    assert points(back) == [(row["layer"], row["back"]["auroc"]) for row in rows]
    for place, name in enumerate(("honesty", "empathy")):
        own = [found["auroc"] for row in rows if (found := row["own"][place])]
        assert [y for _, y in points(lines[f"own direction of {name}, held out"])] == own
    there_band, back_band = corners(axes)
    assert there_band == {(row["layer"], row["transfer"][end]) for row in rows for end in ENDS}
    assert back_band == {(row["layer"], row["back"][end]) for row in rows for end in ENDS}


def test_a_direction_that_sorts_in_sample_is_labelled() -> None:
    comparison = compared_directions()
    comparison["directions"][1]["back"]["shared"] = 24
    names = named_lines(draw_comparison(comparison).axes[1])
    assert {"direction of honesty on empathy", "direction of empathy on honesty, in-sample"} <= set(names)


def test_without_held_out_directions_the_other_lines_are_drawn() -> None:
    comparison = compared_directions()
    for row in comparison["directions"]:
        row["own"] = (None, None)
    assert not any(name.startswith("own") for name in named_lines(draw_comparison(comparison).axes[1]))


def test_the_cosine_axis_always_spans_minus_one_to_one() -> None:
    for rows in ([(3, 0.01, 0.005, 0.02)], [(0, 1.0, 0.1, 0.9), (1, -1.0, 0.1, 0.9)]):
        low, high = draw_comparison(compared_directions(rows)).axes[0].get_ylim()
        assert low < -1
        assert high > 1


def test_scores_by_depth_are_the_data() -> None:
    comparison = compared_depths()
    (axes,) = draw_comparison(comparison).axes
    lines = named_lines(axes)
    bands = corners(axes)
    for name, title, band in zip((FEW, MANY), comparison["titles"], bands, strict=True):
        rows = [row for row in comparison["depths"] if row["capture"] == name]
        assert points(lines[title]) == [(row["depth"], row["d_prime"]) for row in rows]
        assert band == {(row["depth"], row[end]) for row in rows for end in ("low", "high")}


def test_two_models_differ_in_more_than_color() -> None:
    comparison = compared_depths()
    lines = named_lines(draw_comparison(comparison).axes[0])
    one, other = (lines[title] for title in comparison["titles"])
    assert one.get_marker() != other.get_marker()
    assert one.get_linestyle() != other.get_linestyle()
    assert to_hex(one.get_color()) != to_hex(other.get_color())


def test_the_svg_contains_searchable_text(tmp_path: Path) -> None:
    words = set(svg_words(save_figure(partial(draw_comparison, compared_directions()), tmp_path / "cosines.svg")))
    assert words >= {
        *("honesty and empathy", "some_honesty and some_empathy", "Cosine of the two directions", "layer"),
        *("random directions, 95%", "split halves of one capture", "cosine"),
    }
    words = set(svg_words(save_figure(partial(draw_comparison, compared_depths()), tmp_path / "depths.svg")))
    assert words >= {
        *("someone/small and someone/large", f"{FEW} and {MANY}", "someone/small", "someone/large"),
        *("Held-out d' with 95% intervals", "relative depth (share of blocks)"),
    }
    assert any(word.endswith("%") and word[:-1].isdigit() for word in words)


def test_one_layer_is_drawn() -> None:
    lines = named_lines(draw_comparison(compared_directions([(14, 0.5, 0.2, 0.9)])).axes[0])
    assert points(lines["cosine"]) == [(14, 0.5)]
    assert lines["cosine"].get_marker() != "None"


def test_names_are_drawn_literally(tmp_path: Path) -> None:
    draw = partial(draw_comparison, compared_directions(titles=("cost: $5", "$_$")))
    assert "cost: $5 and $_$" in svg_words(save_figure(draw, tmp_path / "cosines.svg"))


def test_it_draws_into_a_given_figure() -> None:
    figure = Figure()
    assert draw_comparison(compared_depths(), figure) is figure
    assert len(figure.axes) == 1
