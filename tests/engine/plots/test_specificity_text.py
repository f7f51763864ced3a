"""Specificity in words and tables: the neighbour that matters is named, and only that one."""

from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.patches import Rectangle
from rich.cells import cell_len

from engine.plots.findings import describe_findings
from engine.plots.layers_text import render_text
from engine.plots.specificity_text import (
    describe_transfer,
    neighbour_sentences,
    specificity_as_text,
    transfer_as_text,
)
from engine.plots.style import save_figure
from engine.plots.transfer_figure import draw_transfer
from engine.records.results import NeighbourAt, SpecificityLayer, SpecificityReport, Transfer, TransferMatrix
from engine.stats.specificity import not_measured
from tests.engine.plots.pictures import svg_words
from tests.engine.plots.records import contrast_record
from tests.engine.plots.results import sorted_pairs


def neighbour(name: str, auroc: float, left: float = 0.5) -> NeighbourAt:
    back = sorted_pairs(0.6)
    return NeighbourAt(name=name, transfer=sorted_pairs(auroc), back=back, own=sorted_pairs(0.9), d_prime_left=left)


def report_of(*neighbours: NeighbourAt, own: float = 0.9, **changes: Any) -> SpecificityReport:
    """One layer before the one to read first, with other numbers."""
    row = SpecificityLayer(
        layer=16, own=sorted_pairs(own), d_prime=2.31, d_prime_left=0.85, neighbours=list(neighbours)
    )
    before = SpecificityLayer(
        layer=15, own=sorted_pairs(0.5), d_prime=9.0, d_prime_left=9.0, neighbours=[*reversed(neighbours)]
    )
    made = SpecificityReport(layer=16, layers=[before, row], resampled="persona", reason="", warnings=[])
    return made | changes  # type: ignore[return-value]  # merging with a plain dict loses the TypedDict


def test_the_neighbour_that_sorts_as_well_is_named() -> None:
    report = report_of(neighbour("desirability", 0.88), neighbour("formality", 0.6))
    assert neighbour_sentences(report) == [
        "At layer 16, the direction of desirability (AUROC 0.88, 95% interval 0.83 to 0.93) sorts these pairs as well"
        " as their own held-out direction (AUROC 0.90), within its interval: the contrast may measure it instead.",
        "Without the directions of desirability and formality, held-out d' there is 0.85 instead of 2.31.",
    ]


@pytest.mark.parametrize("auroc", [0.92, 0.08])
def test_a_neighbour_that_sorts_better_needs_no_interval(auroc: float) -> None:
    first, _ = neighbour_sentences(report_of(neighbour("desirability", auroc)))
    assert first.endswith("their own held-out direction (AUROC 0.90): the contrast may measure it instead.")


def test_several_and_reversed_neighbours_are_named() -> None:
    first, _ = neighbour_sentences(
        report_of(neighbour("a", 0.88), neighbour("b", 0.6), neighbour("c", 0.1), neighbour("d", 0.9))
    )
    assert first.startswith("At layer 16, the directions of a (AUROC 0.88, 95% interval 0.83 to 0.93), c, reversed (")
    assert " and d (AUROC 0.90" in first
    assert "sort these pairs" in first
    assert first.endswith("(AUROC 0.90), within their intervals: the contrast may measure one of them instead.")
    assert "b (" not in first


def test_without_such_a_neighbour_the_nearest_is_given() -> None:
    first, second = neighbour_sentences(report_of(neighbour("formality", 0.55), neighbour("sentiment", 0.3)))
    assert first == (
        "At layer 16, no neighbour's direction sorts these pairs as well as their own held-out direction (AUROC 0.90)."
        " The nearest is sentiment, reversed (AUROC 0.30, 95% interval 0.25 to 0.35)."
    )
    assert "formality and sentiment" in second
    assert "the direction of formality," in neighbour_sentences(report_of(neighbour("formality", 0.55)))[1]


def wide(name: str, auroc: float, low: float, high: float) -> NeighbourAt:
    return neighbour(name, auroc) | {"transfer": Transfer(auroc=auroc, low=low, high=high, in_order=auroc)}


def test_a_wide_interval_is_not_called_as_good_or_worse() -> None:
    report = report_of(wide("formality", 0.6, 0.3, 0.92), neighbour("sentiment", 0.3))
    assert neighbour_sentences(report)[:-1] == [
        "At layer 16, the direction of formality (AUROC 0.60, 95% interval 0.30 to 0.92) cannot be told apart from"
        " these pairs' own held-out direction (AUROC 0.90) by how it sorts them: its interval is too wide."
    ]


def test_those_that_sort_as_well_come_before_those_that_cannot_be_told_apart() -> None:
    report = report_of(wide("a", 0.6, 0.3, 0.92), neighbour("b", 0.88), wide("c", 0.45, 0.05, 0.9))
    first, second, left = neighbour_sentences(report)
    assert first.startswith("At layer 16, the direction of b (")
    assert second.startswith(
        "At layer 16, the directions of a (AUROC 0.60, 95% interval 0.30 to 0.92) and c, reversed ("
    )
    assert second.endswith("by how they sort them: their intervals are too wide.")
    assert left.startswith("Without the directions of a, b and c")


def test_a_neighbour_with_a_higher_auroc_is_never_behind() -> None:
    """An interval that includes chance does not make it worse, but no proof that it sorts anything either."""
    (first, _) = neighbour_sentences(report_of(wide("formality", 0.72, 0.45, 0.9), own=0.7))
    said = "At layer 16, the direction of formality (AUROC 0.72, 95% interval 0.45 to 0.90) cannot be told apart from"
    assert first.startswith(said)
    (first, _) = neighbour_sentences(report_of(wide("formality", 0.72, 0.55, 0.9), own=0.7))
    assert first.startswith("At layer 16, the direction of formality (AUROC 0.72, 95% interval 0.55 to 0.90) sorts")


def in_sample(auroc: float) -> Transfer:
    return Transfer(**sorted_pairs(auroc), shared=72)


def test_a_neighbour_that_sorts_in_sample_is_not_compared() -> None:
    copy = neighbour("copy", 0.95)
    copy["transfer"] = in_sample(0.95)
    first, left = neighbour_sentences(report_of(copy, neighbour("formality", 0.6)))
    assert first.startswith("At layer 16, no neighbour's direction sorts")
    assert first.endswith("The nearest is formality (AUROC 0.60, 95% interval 0.55 to 0.65).")
    (left,) = neighbour_sentences(report_of(copy))
    assert left.startswith("Without the direction of copy")


def test_nothing_measured_says_nothing() -> None:
    assert neighbour_sentences(None) == []
    assert neighbour_sentences(not_measured("some weights are offloaded")) == []
    shown = render_text(specificity_as_text(not_measured("some weights are offloaded")))
    assert shown == "not compared with neighbours: some weights are offloaded\n"


def test_findings_name_the_neighbour_after_the_leader() -> None:
    record = contrast_record()
    before = describe_findings(record)
    record["specificity"] = report_of(neighbour("desirability", 0.88))
    assert describe_findings(record) == [before[0], *neighbour_sentences(record["specificity"]), *before[1:]]


def test_the_table_shows_the_layer_to_read_first() -> None:
    report = report_of(neighbour("desirability", 0.88, 0.72), neighbour("x" * 40, 0.6, -0.1), warnings=["few"])
    shown = render_text(specificity_as_text(report))
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines[0] == "neighbours at layer 16"
    assert lines[2] == "own, held out 0.90 0.85 to 0.95 90% 2.31"
    assert lines[3] == "desirability 0.88 0.83 to 0.93 88% 0.60 0.72 left"
    assert lines[4] == f"{'x' * 15}… 0.60 0.55 to 0.65 60% 0.60 -0.10 left"
    assert lines[5] == "all neighbours 0.85 left"
    assert lines[-1] == "warning: few"
    assert max(cell_len(line) for line in shown.splitlines()) <= 80


MATRIX = TransferMatrix(
    names=["a", "b", "c"],
    titles=["honesty", "empathy", "$x^"],
    layer=15,
    cells=[
        [sorted_pairs(0.8), sorted_pairs(0.6), sorted_pairs(0.5)],
        [sorted_pairs(0.78), sorted_pairs(0.9), sorted_pairs(0.5)],
        [sorted_pairs(0.18), sorted_pairs(0.4), sorted_pairs(0.7)],
    ],
    off_diagonal=0.63,
    warnings=["they differ in dtype"],
)


def test_the_matrix_in_full() -> None:
    assert [line.rstrip() for line in render_text(transfer_as_text(MATRIX)).splitlines()] == [
        "honesty, empathy and $x^, layer 15",
        "direction    1    2    3",
        "1 honesty 0.80 0.60 0.50",
        "2 empathy 0.78 0.90 0.50",
        "3 $x^     0.18 0.40 0.70",
        "AUROC of the direction in the row on the pairs of the column; on the diagonal,",
        "held out.",
        "honesty (AUROC 0.80) is sorted as well by the direction of empathy (AUROC 0.78,",
        "95% interval 0.73 to 0.83) and $x^ (AUROC 0.18, 95% interval 0.13 to 0.23).",
        "Mean share of pairs in one order, whichever is more frequent, off the diagonal:",
        "0.63 (0.50 is the least).",
        "warning: they differ in dtype",
    ]


def test_directions_that_cannot_be_told_apart_are_named() -> None:
    unsure = Transfer(auroc=0.55, low=0.2, high=0.85, in_order=0.55)
    cells = [[sorted_pairs(0.8), sorted_pairs(0.5)], [unsure, sorted_pairs(0.9)]]
    _, line, mean = describe_transfer(MATRIX | {"titles": ["honesty", "empathy"], "cells": cells})
    assert line == (
        "On the pairs of honesty (AUROC 0.80), its own direction cannot be told apart from that of empathy."
    )
    assert mean.startswith("Mean share")


def test_a_cell_that_is_in_sample_is_not_compared_and_says_so(tmp_path: Any) -> None:
    cells = [[sorted_pairs(0.8), sorted_pairs(0.5)], [in_sample(0.95), sorted_pairs(0.9)]]
    matrix = MATRIX | {"titles": ["honesty", "empathy"], "cells": cells}
    assert len(describe_transfer(matrix)) == 2
    assert not draw_transfer(matrix).axes[0].patches
    words = svg_words(save_figure(lambda: draw_transfer(matrix), tmp_path / "matrix.svg"))
    assert words.count("in-sample") == 1


def test_twelve_captures_fit_the_width() -> None:
    count = 12
    large = MATRIX | {
        "titles": ["a long name of a concept"] * count,
        "cells": [[sorted_pairs(0.5)] * count for _ in range(count)],
    }
    shown = render_text(transfer_as_text(large))
    assert max(cell_len(line) for line in shown.splitlines()) <= 80
    assert len(describe_transfer(large)) == 2 + count


def test_the_figure_shows_every_cell(tmp_path: Any) -> None:
    axes = draw_transfer(MATRIX).axes[0]
    shown = np.array([[cell["auroc"] for cell in row] for row in MATRIX["cells"]])
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), shown)
    frames = [patch.get_xy() for patch in axes.patches if isinstance(patch, Rectangle)]
    assert sorted(frames) == [(-0.47, 0.53), (-0.47, 1.53)]
    words = set(svg_words(save_figure(lambda: draw_transfer(MATRIX), tmp_path / "matrix.svg")))
    assert words >= {"honesty", "empathy", "$x^", "0.18", "0.13–0.23", "pairs", "direction"}  # noqa: RUF001
    saved = save_figure(lambda: draw_transfer(MATRIX), tmp_path / "matrix.png")
    assert matplotlib.image.imread(saved).shape[1] > 800


def test_a_large_matrix_is_drawn_without_numbers() -> None:
    count = 40
    large = MATRIX | {"titles": ["x"] * count, "cells": [[sorted_pairs(0.5)] * count for _ in range(count)]}
    axes = draw_transfer(large).axes[0]
    assert not axes.texts
