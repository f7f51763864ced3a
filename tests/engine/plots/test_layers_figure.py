"""The figure of a chart: every bar, interval and band shows the data."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from engine.plots.layers_chart import layers_chart
from engine.plots.layers_figure import draw_layers
from engine.plots.style import save_figure
from engine.records.files import CaptureRecord
from tests.engine.plots.pictures import svg_words
from tests.engine.plots.records import (
    confounds_of,
    contrast_record,
    contrast_rows,
    prompt_record,
    ranking_of,
    unranked_record,
)
from tests.engine.stats.captures import provenance

LAYERS = (14, 15, 20, 29)


def drawn(record: CaptureRecord) -> Figure:
    return draw_layers(layers_chart(record))


def some_layers() -> CaptureRecord:
    """Four layers: 15 leads, 20 is tied, and all intervals and null bands differ."""
    rows, ranking = contrast_rows(), ranking_of(tied=[2])
    for row, layer in zip(rows, LAYERS, strict=True):
        row["layer"] = layer
    for ranked in ranking["layers"]:
        ranked["low"] -= 0.1 * ranked["rank"]
        ranked["high"] += 0.2 * ranked["rank"]
        ranked["null_low"] -= 0.01 * ranked["rank"]
        ranked["null_high"] += 0.02 * ranked["rank"]
        ranked["layer"] = LAYERS[ranked["layer"]]
    return contrast_record(rows, ranking)


def ranked_of(record: CaptureRecord) -> dict[int, dict[str, Any]]:
    assert record["ranking"] is not None
    return {row["layer"]: dict(row) for row in record["ranking"]["layers"]}


def bars(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def error_bars(axes: Axes) -> list[ErrorbarContainer]:
    return [container for container in axes.containers if isinstance(container, ErrorbarContainer)]


def ends(container: ErrorbarContainer) -> list[list[list[float]]]:
    """Endpoints of every error bar."""
    (lines,) = container.lines[2]
    assert isinstance(lines, LineCollection)
    return [np.asarray(segment).tolist() for segment in lines.get_segments()]


def test_points_and_error_bars_of_the_scores_are_the_data() -> None:
    record = some_layers()
    points: dict[float, float] = {}
    intervals: dict[float, tuple[float, float]] = {}
    for container in error_bars(drawn(record).axes[0]):
        line = container.lines[0]
        assert line is not None
        points |= dict(zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True))
        intervals |= {below[0]: (below[1], above[1]) for below, above in ends(container)}
    ranked = ranked_of(record)
    assert points == {layer: row["d_prime"] for layer, row in ranked.items()}
    assert intervals.keys() == ranked.keys()
    for layer, row in ranked.items():
        assert intervals[layer] == pytest.approx((row["low"], row["high"]))


def test_tied_layers_have_another_color_and_another_marker() -> None:
    groups = error_bars(drawn(some_layers()).axes[0])
    lines = {str(group.get_label()): group.lines[0] for group in groups}
    assert set(lines) == {"tied with the best, 95% interval", "other layers, 95% interval"}
    tied, behind = (lines[f"{name}, 95% interval"] for name in ("tied with the best", "other layers"))
    assert tied is not None
    assert behind is not None
    assert [np.asarray(line.get_xdata()).tolist() for line in (tied, behind)] == [[15, 20], [14, 29]]
    assert to_hex(tied.get_color()) != to_hex(behind.get_color())
    assert tied.get_marker() != behind.get_marker()


def test_the_band_is_the_permutation_null() -> None:
    record = some_layers()
    axes = drawn(record).axes[0]
    (band,) = [collection for collection in axes.collections if isinstance(collection, PolyCollection)]
    vertices = {(float(x), round(float(y), 9)) for x, y in np.asarray(band.get_paths()[0].vertices)}
    expected = {
        (float(layer), round(row[end], 9))
        for layer, row in ranked_of(record).items()
        for end in ("null_low", "null_high")
    }
    assert vertices == expected
    assert band.get_label() == "permutation null (shuffled labels), 95%"


def test_chance_is_a_line_across() -> None:
    record = contrast_record(ranking=ranking_of(chance=0.625))
    lines = {str(line.get_label()): line for line in drawn(record).axes[0].get_lines()}
    assert np.asarray(lines["best layer of the permutation null, 95%"].get_ydata()).tolist() == [0.625, 0.625]


def test_the_ranking_shows_the_best_on_top_with_its_interval() -> None:
    d_primes = [0.1 * (layer * 7 % 20) for layer in range(20)]
    record = contrast_record(ranking=ranking_of(d_primes, tied=[3]))
    ranking = drawn(record).axes[1]
    ranked = list(ranked_of(record).values())[:12]
    assert [bar.get_width() for bar in bars(ranking)] == [row["d_prime"] for row in ranked]
    assert [label.get_text() for label in ranking.get_yticklabels()] == [str(row["layer"]) for row in ranked]
    assert ranking.yaxis_inverted()
    (intervals,) = error_bars(ranking)
    for (left, right), row in zip(ends(intervals), ranked, strict=True):
        assert (left[0], right[0]) == pytest.approx((row["low"], row["high"]))
    colors = [to_hex(bar.get_facecolor()) for bar in bars(ranking)]
    tied = {color for color, row in zip(colors, ranked, strict=True) if row["tied"]}
    behind = {color for color, row in zip(colors, ranked, strict=True) if not row["tied"]}
    assert (len(tied), len(behind), tied & behind) == (1, 1, set())


@pytest.mark.parametrize("record", [some_layers(), unranked_record()], ids=["ranked", "unranked"])
def test_raw_norm_and_cosine_are_below(record: CaptureRecord) -> None:
    *_, raw, cosine = drawn(record).axes
    rows = record["statistics"]
    columns = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in bars(raw)}
    assert columns == {row["layer"]: row["diff_norm"] for row in rows}
    line = cosine.get_lines()[0]
    assert np.asarray(line.get_xdata()).tolist() == [row["layer"] for row in rows]
    assert np.asarray(line.get_ydata()).tolist() == [row["cosine_sim"] for row in rows]


def test_without_a_ranking_the_relative_norm_is_drawn() -> None:
    record = unranked_record()
    figure = drawn(record)
    assert len(figure.axes) == 3
    assert [bar.get_height() for bar in bars(figure.axes[0])] == [row["relative_norm"] for row in record["statistics"]]
    assert not any(error_bars(axes) for axes in figure.axes)
    assert figure.axes[0].get_title(loc="left") + figure.axes[0].get_title() != ""


def test_the_figure_does_not_blame_too_few_pairs(tmp_path: Path) -> None:
    reason = "all pairs have the same persona, template and topic: nothing can be held out"
    chart = layers_chart(unranked_record(reason=reason, num_pairs=72))
    words = svg_words(save_figure(partial(draw_layers, chart), tmp_path / "chart.svg"))
    assert "too few pairs" not in " ".join(words)


def test_a_prompt_shows_only_its_norms() -> None:
    record = prompt_record()
    (axes,) = drawn(record).axes
    assert [bar.get_height() for bar in bars(axes)] == [row["norm"] for row in record["statistics"]]
    assert "Mean norm of a token's state" in axes.get_title(loc="left") + axes.get_title()


def test_axes_label_the_layers() -> None:
    layer = "layer (output of block)"
    assert [axes.get_xlabel() for axes in drawn(contrast_record()).axes] == [layer, "held-out d'", layer, layer]
    assert {axes.get_xlabel() for axes in drawn(unranked_record()).axes} == {layer}
    assert {axes.get_xlabel() for axes in drawn(prompt_record()).axes} == {layer}


def test_axes_name_a_site_other_than_the_block_output() -> None:
    for record in (contrast_record(), unranked_record(), prompt_record()):
        record["provenance"] = provenance(positions="last", site="mlp_out")
        labels = {axes.get_xlabel() for axes in drawn(record).axes} - {"held-out d'"}
        assert labels == {"layer (mlp_out of block)"}


def test_all_tied_none_tied_and_one_layer_are_drawn() -> None:
    for ranking in (ranking_of(tied=range(4)), ranking_of(), ranking_of([1.0])):
        axes = drawn(contrast_record(ranking=ranking)).axes[0]
        shown = [point for group in error_bars(axes) for point in ends(group)]
        assert len(shown) == len(ranking["layers"])


def test_the_svg_contains_searchable_text(tmp_path: Path) -> None:
    chart = layers_chart(contrast_record(ranking=ranking_of(tied=[2]), confounds=confounds_of(0.9)))
    words = set(svg_words(save_figure(partial(draw_layers, chart), tmp_path / "chart.svg")))
    assert words >= {
        *("honesty", "someone/some-model, 72 pairs, positions: last"),
        *("Held-out d'", "Layers by rank", "Raw difference norm (grows with depth)"),
        *("permutation null (shuffled labels), 95%", "best layer of the permutation null, 95%"),
        *("tied with the best, 95% interval", "other layers, 95% interval"),
        "Cosine of the class means (near 1 is normal)",
    }


def test_it_draws_into_a_given_figure() -> None:
    figure = Figure()
    assert draw_layers(layers_chart(contrast_record()), figure) is figure
    assert len(figure.axes) == 4
