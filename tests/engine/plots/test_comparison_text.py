"""Two captures side by side as text: every mark where its number puts it, and sentences that say no more."""

import pytest
from rich.cells import cell_len
from rich.console import Console

from engine.plots.comparison_text import comparison_as_text, describe_comparison
from engine.plots.layers_text import render_text
from engine.records.results import Comparison
from tests.engine.plots.results import COSINES, FEW, MANY, compared_depths, compared_directions, depth_rows

MARKS = 37  # columns from cosine -1 to cosine 1

DIRECTIONS = """\
honesty and empathy
layer cosine random within halves reach -1                0                +1
    0  +1.00         ±0.10         0.90                 ░░│░░               ●
    1  -1.00         ±0.50         0.80 ●        ░░░░░░░░░│░░░░░░░░░
    2  +0.05         ±0.20         0.95               ░░░░│●░░░
    3  -0.30         ±0.25         0.70              ●░░░░│░░░░
The directions of honesty and empathy lie closer than random ones of the same
captures (95%, layer by layer) at 3 of 4 layers; furthest from 0 at layer 0:
cosine +1.00, random ones within ±0.10.
The directions of two halves of one capture have 0.90 there: about what one and
the same direction would show.
warning: they differ in dtype: float32 and bfloat16
"""

DEPTHS = """\
someone/small and someone/large
depth layer    d'      interval layer   d'      interval
  33%    0=  0.50  0.00 to 1.50     1 0.50  0.00 to 1.50
  67%    1=  1.25  0.75 to 2.25    3= 2.00  1.50 to 3.00
 100%     2 -0.50 -1.00 to 0.50     5 0.25 -0.25 to 1.25
someone/small: layer 1 leads at 67% of the depth (d' 1.25); tied with it are
layers from 33% to 67%.
someone/large: layer 3 leads at 67% of the depth (d' 2.00); tied with it are
layers from 67% to 83%.
warning: they were not made from the same pairs
"""


def lines_of(comparison: Comparison) -> list[str]:
    return [line.rstrip() for line in render_text(comparison_as_text(comparison)).splitlines()]


def marks_of(comparison: Comparison) -> list[str]:
    """What is drawn of each layer, without its numbers."""
    lines = render_text(comparison_as_text(comparison)).splitlines()
    start = lines[1].index("-1 ")
    return [line[start : start + MARKS] for line in lines[2 : 2 + len(comparison["directions"])]]


@pytest.mark.parametrize(
    ("comparison", "expected"),
    [
        (compared_directions(warnings=["they differ in dtype: float32 and bfloat16"]), DIRECTIONS),
        (compared_depths(warnings=["they were not made from the same pairs"]), DEPTHS),
    ],
    ids=["directions", "depths"],
)
def test_the_text_to_the_letter(comparison: Comparison, expected: str) -> None:
    assert lines_of(comparison) == expected.splitlines()


@pytest.mark.parametrize(
    ("cosine", "column"), [(-1.0, 0), (-0.5, 9), (0.0, 18), (0.5, 27), (1.0, 36), (1.0000001, 36), (-1.0000001, 0)]
)
def test_a_cosine_is_drawn_where_it_lies(cosine: float, column: int) -> None:
    (marks,) = marks_of(compared_directions([(4, cosine, 0.0, 1.0)]))
    assert marks.index("●") == column
    assert marks.count("●") == 1


@pytest.mark.parametrize(("chance", "first", "last"), [(0.5, 9, 27), (1.0, 0, 36), (1.3, 0, 36), (0.1, 16, 20)])
def test_the_band_reaches_as_far_as_random_directions(chance: float, first: int, last: int) -> None:
    (marks,) = marks_of(compared_directions([(4, 0.0, chance, 1.0)]))
    assert (marks.index("░"), marks.rindex("░")) == (first, last)
    assert set(marks[first : last + 1]) == {"░", "●"}


def test_zero_is_under_its_heading() -> None:
    heading = lines_of(compared_directions())[1]
    assert heading[heading.index("-1 ") :].index("0") == marks_of(compared_directions())[0].index("│") == 18


def test_what_lies_beyond_chance_has_another_colour() -> None:
    console = Console(width=80, color_system="truecolor", force_terminal=True, force_interactive=False)
    colours = [
        segment.style.color.name
        for segment in console.render(comparison_as_text(compared_directions()))
        if segment.text == "●" and segment.style and segment.style.color
    ]
    assert colours == ["yellow", "yellow", "blue", "yellow"]


@pytest.mark.parametrize("rows", [COSINES[2:3], [(14, -0.4, 0.5, 0.6)]], ids=["weak", "within chance"])
def test_one_layer(rows: list[tuple[int, float, float, float]]) -> None:
    first, second = describe_comparison(compared_directions(rows))
    assert " at 0 of 1 layers;" in first
    assert f"at layer {rows[0][0]}: cosine {rows[0][1]:+.2f}, random ones within ±{rows[0][2]:.2f}." in first
    assert f"have {rows[0][3]:.2f} there" in second
    assert len(marks_of(compared_directions(rows))) == 1


def test_the_layer_furthest_from_zero_may_point_the_other_way() -> None:
    first, second = describe_comparison(compared_directions([(3, 0.4, 0.1, 0.7), (9, -0.6, 0.2, 0.8)]))
    assert "furthest from 0 at layer 9: cosine -0.60, random ones within ±0.20." in first
    assert "have 0.80 there" in second


def test_layers_are_counted_as_beyond_chance_whichever_way_they_point() -> None:
    rows = [(0, 0.3, 0.3, 0.9), (1, 0.31, 0.3, 0.9), (2, -0.31, 0.3, 0.9), (3, -0.2, 0.3, 0.9)]
    assert "at 2 of 4 layers" in describe_comparison(compared_directions(rows))[0]


def test_each_model_has_a_sentence_of_its_own() -> None:
    assert describe_comparison(compared_depths()) == [
        "someone/small: layer 1 leads at 67% of the depth (d' 1.25); tied with it are layers from 33% to 67%.",
        "someone/large: layer 3 leads at 67% of the depth (d' 2.00); tied with it are layers from 67% to 83%.",
    ]


def test_where_no_other_layer_is_tied_none_is_said_to_be() -> None:
    comparison = compared_depths(depths=[*depth_rows(FEW, [0.5, 2.0, 0.1], [1]), *depth_rows(MANY, [1.0, 0.0], [0])])
    assert not any("tied with it are" in sentence for sentence in describe_comparison(comparison))


def test_a_layer_stands_beside_the_one_of_nearest_depth() -> None:
    """Four layers beside eighty: each beside the twentieth, fortieth, ..."""
    lines = lines_of(compared_depths([1.0, 2.0, 0.5, 0.2], [layer / 100 for layer in range(80)]))
    assert [line.split()[:2] for line in lines[2:6]] == [["25%", "0="], ["50%", "1="], ["75%", "2"], ["100%", "3"]]
    assert [line.split()[6] for line in lines[2:6]] == ["19", "39", "59", "79"]


@pytest.mark.parametrize(
    "comparison",
    [
        compared_directions([(layer, -0.01 * layer, 0.9, 0.99) for layer in range(80)]),
        compared_depths([-15.0 - layer for layer in range(80)], [120.0 + layer for layer in range(80)]),
        compared_directions(titles=("a concept of a long name " * 4, "正直さ" * 30)),
        compared_depths(titles=("x" * 100, "someone/" + "y" * 100), warnings=["w" * 200]),
    ],
    ids=["80 layers", "80 layers of large scores", "long names", "longer names"],
)
def test_nothing_is_wider_than_80_columns_or_cut(comparison: Comparison) -> None:
    lines = lines_of(comparison)
    assert max(cell_len(line) for line in lines) <= 80
    assert not any("…" in line for line in lines)


def test_markup_in_a_name_is_text() -> None:
    titles = ("[bold]honesty[/bold]", "[/] empathy")
    assert lines_of(compared_directions(titles=titles))[0] == "[bold]honesty[/bold] and [/] empathy"
