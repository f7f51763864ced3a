"""A chart as a picture: of the kind and size asked for, with the numbers of the data."""

import struct
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from engine.errors import RequestError, StoreError
from engine.plots.chart import layer_chart
from engine.plots.figure import draw_layers, save_figure, show_figure
from tests.engine.plots.records import contrast_record, contrast_rows, prompt_record, separated_rows


def bars(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def svg_text(path: Path) -> str:
    """All text of a picture, as a reader would find it."""
    elements = ElementTree.parse(path).iter()  # noqa: S314 - the picture was drawn here
    return "\n".join("".join(element.itertext()) for element in elements if element.tag.endswith("text"))


@pytest.mark.parametrize(("dpi", "size"), [(200, (1440, 960)), (100, (720, 480))])
def test_a_png_has_its_size_in_pixels(tmp_path: Path, dpi: int, size: tuple[int, int]) -> None:
    path = save_figure(layer_chart(contrast_record()), tmp_path / "chart.png", dpi=dpi)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", content[16:24]) == size


def test_an_svg_holds_its_words_as_text(tmp_path: Path) -> None:
    path = save_figure(layer_chart(contrast_record()), tmp_path / "chart.svg")
    text = svg_text(path)
    assert "honesty" in text
    assert "someone/some-model, 8 pairs, positions: last" in text
    assert "Relative norm" in text


def test_a_pdf_is_one(tmp_path: Path) -> None:
    path = save_figure(layer_chart(contrast_record()), tmp_path / "chart.PDF")
    assert path.read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("title", ["5 < 6 & 7", "cost: $5 or $6", "$_$", "50% \\frac{"])
def test_a_name_is_drawn_as_it_is_written(tmp_path: Path, title: str) -> None:
    path = save_figure(layer_chart(contrast_record(concept=title)), tmp_path / "chart.svg")
    assert title in svg_text(path)


def test_folders_are_made(tmp_path: Path) -> None:
    path = save_figure(layer_chart(prompt_record()), tmp_path / "figures" / "new" / "chart.png")
    assert path == tmp_path / "figures" / "new" / "chart.png"
    assert path.is_file()


@pytest.mark.parametrize("name", ["chart", "chart.jpg", "chart.png.txt"])
def test_another_suffix_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=rf"'{name}' says no picture format.*\.png, \.svg, \.pdf"):
        save_figure(layer_chart(contrast_record()), tmp_path / "new" / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file where the folder should be stops every user, root too."""
    (tmp_path / "figures").write_text("not a folder")
    with pytest.raises(StoreError, match=r"figures/chart\.png cannot be written: \w.*choose another path"):
        save_figure(layer_chart(contrast_record()), tmp_path / "figures" / "chart.png")


def test_the_columns_of_a_contrast_are_its_data() -> None:
    rows = contrast_rows()
    for row, layer in zip(rows, (14, 15, 20, 29), strict=True):
        row["layer"] = layer
    relative, _, raw, cosine = draw_layers(layer_chart(contrast_record(rows))).axes
    for axes, column in ((relative, "relative_norm"), (raw, "diff_norm")):
        drawn = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in bars(axes)}
        assert drawn == {row["layer"]: dict(row)[column] for row in rows}
    line = cosine.get_lines()[0]
    assert np.asarray(line.get_xdata()).tolist() == [row["layer"] for row in rows]
    assert np.asarray(line.get_ydata()).tolist() == [row["cosine_sim"] for row in rows]


def test_the_ranking_shows_the_largest_on_top() -> None:
    norms = [0.01 * (layer * 7 % 12 + 1) for layer in range(12)]
    ranking = draw_layers(layer_chart(contrast_record(contrast_rows(norms)))).axes[1]
    widths = [bar.get_width() for bar in bars(ranking)]
    assert widths == sorted(norms, reverse=True)[:10]
    labels = [label.get_text() for label in ranking.get_yticklabels()]
    assert labels == [str(norms.index(width)) for width in widths]
    assert ranking.yaxis_inverted()


def test_the_five_best_layers_stand_out() -> None:
    norms = [0.01 * (layer * 7 % 12 + 1) for layer in range(12)]
    chart = layer_chart(contrast_record(contrast_rows(norms)))
    columns = bars(draw_layers(chart).axes[0])
    colours = {layer: columns[layer].get_facecolor() for layer in range(12)}
    best, others = {colours[layer] for layer in chart.ranked[:5]}, {colours[layer] for layer in chart.ranked[5:]}
    assert (len(best), len(others)) == (1, 1)
    assert best != others


def test_what_the_score_is_the_worst_of_is_marked() -> None:
    d_primes = [(2.0, 0.5), (1.0, 1.5), (0.7, 3.0)]
    axes = draw_layers(layer_chart(contrast_record(separated_rows(d_primes)))).axes[0]
    assert [bar.get_height() for bar in bars(axes)] == [0.5, 1.0, 0.7]
    marked = {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in axes.get_lines()}
    assert marked == {"persona left out": [2.0, 1.0, 0.7], "topic left out": [0.5, 1.5, 3.0]}


def test_a_prompt_shows_its_norms_alone() -> None:
    record = prompt_record()
    (axes,) = draw_layers(layer_chart(record)).axes
    assert [bar.get_height() for bar in bars(axes)] == [row["norm"] for row in record["statistics"]]
    assert "Norm of a token's state" in axes.get_title(loc="left") + axes.get_title()


def test_axes_say_what_a_layer_is() -> None:
    figure = draw_layers(layer_chart(contrast_record()))
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "layer (output of block)",
        "relative norm",
        "layer (output of block)",
        "layer (output of block)",
    ]


def test_drawing_leaves_the_users_style_alone(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    save_figure(layer_chart(contrast_record()), tmp_path / "chart.svg")
    assert dict(mpl.rcParams) == before


def test_without_a_display_the_way_out_is_named() -> None:
    with mpl.rc_context({"backend": "agg"}), pytest.raises(RequestError, match=r"no display.*--output FILE\.png"):
        show_figure(layer_chart(contrast_record()))
